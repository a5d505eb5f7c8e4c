"""Reading weights files: what Keras writes, and what nobody should trust."""

import warnings

import h5py
import numpy as np
import pytest

from cnnjax.weights.hdf5 import WeightsError, read_tensors


@pytest.mark.parametrize("group", ["/", "model_weights"])
def test_both_layouts(group, values, write):
    got = read_tensors(write(values, group))
    assert list(got) == list(values)
    assert list(got["conv1_bn"]) == ["gamma", "beta", "moving_mean", "moving_variance"]
    assert got["conv1_relu"] == {}
    for layer, tensors in values.items():
        for (_, read), written in zip(got[layer].items(), tensors.values(), strict=True):
            assert read.dtype == np.float32
            np.testing.assert_array_equal(read, written)


def test_published_file_is_read_whole(shared_data):
    path = shared_data / "weights" / "mobilenet_2_5_224_tf_no_top.h5"
    got = read_tensors(path)
    assert len(got) == 83
    assert list(got)[:3] == ["input_1", "conv1", "conv1_bn"]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(
            got["conv_dw_3"]["depthwise_kernel"], file["conv_dw_3/conv_dw_3/depthwise_kernel:0"]
        )
    # Keras's documentation counts 218,544 parameters in this model without top
    assert sum(array.size for tensors in got.values() for array in tensors.values()) == 218_544


def test_old_and_new_names_of_kernel_and_bias(write):
    kernel, bias = np.ones((3, 3, 3, 2), np.float32), np.zeros(2, np.float32)
    old = write({"block1_conv1": {"block1_conv1_W_1:0": kernel, "block1_conv1_b_1:0": bias}}, name="old.h5")
    new = write({"block1_conv1": {"block1_conv1/kernel": kernel, "block1_conv1/bias": bias}}, name="new.h5")
    assert list(read_tensors(old)["block1_conv1"]) == list(read_tensors(new)["block1_conv1"]) == ["kernel", "bias"]


def test_names_in_several_attributes_and_as_text(values, write):
    path = write(values)
    with h5py.File(path, "a") as file:
        del file.attrs["layer_names"]
        file.attrs["layer_names0"] = ["conv1", "conv1_bn"]
        file.attrs["layer_names1"] = [b"conv1_relu", b"conv_dw_1", b"predictions"]
    assert list(read_tensors(path)) == list(values)


def test_model_nested_as_a_layer_keeps_whole_names(write):
    one = np.ones(1, np.float32)
    path = write({"mobilenet": {"conv1/kernel:0": one, "conv2/kernel:0": one, "conv2/bias:0": one}})
    assert list(read_tensors(path)["mobilenet"]) == ["conv1/kernel:0", "conv2/kernel:0", "bias"]


def test_foreign_byte_order_is_turned(write):
    array = np.arange(4, dtype=">f4")
    got = read_tensors(write({"fc": {"fc/bias:0": array}}))["fc"]["bias"]
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"epoch,loss\n1,0.5\n", r"is not an HDF5 file but text; it begins with b'epoch,loss"),
        (b"<!DOCTYPE html><html>404</html>", "is not an HDF5 file but a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "but a Git LFS pointer"),
        (b"PK\x03\x04\x14\x00\x00\x00", r"but a zip archive, perhaps a \.keras file"),
        (bytes(range(256)), "is not an HDF5 file; it begins with"),
    ],
)
def test_files_that_are_something_else(content, message, tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as error:
        read_tensors(path)
    assert str(path) in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.h5: there is no such file"):
        read_tensors(tmp_path / "none.h5")
    with pytest.raises(WeightsError, match="is not a file"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_file(kept, values, write):
    path = write(values)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(WeightsError, match="the file is truncated"):
        read_tensors(path)


def test_damaged_files_give_one_clear_error_or_all_tensors(values, write):
    path = write(values)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    whole = {layer: len(tensors) for layer, tensors in values.items()}
    errors = 0
    for _ in range(60):
        broken = data.copy()
        start = rng.integers(0, len(data) - 64)
        broken[start : start + 64] = rng.integers(0, 256, 64)
        path.write_bytes(broken.tobytes())
        try:
            assert {layer: len(tensors) for layer, tensors in read_tensors(path).items()} == whole
        except WeightsError:
            errors += 1
    assert 10 < errors < 60


def _replace(file, make):
    del file["conv1/conv1/kernel:0"]
    make(file)


def _external_storage(file):
    file.create_dataset("conv1/conv1/kernel:0", (4,), "f4", external=[("/etc/hostname", 0, 16)])


def _virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    file.create_virtual_dataset("conv1/conv1/kernel:0", layout)


def _bomb(file):
    dataset = file.create_dataset("conv1/conv1/kernel:0", (1 << 31,), "f4", chunks=(1 << 10,), compression="gzip")
    dataset[:4] = 1.0


def _many_names_for_one(file):
    """Give 400 layers one compressed tensor of 16 MiB by hard links: 6.4 GiB out of a file of 40 kB."""
    dataset = file.create_dataset("conv1/conv1/kernel:0", data=np.zeros(1 << 22, "f4"), chunks=True, compression="gzip")
    layers = [*file, *(f"layer_{i}" for i in range(400))]
    for name in layers[-400:]:
        file.create_group(name).attrs["weight_names"] = [b"kernel:0"]
        file[name]["kernel:0"] = dataset
    file.attrs["layer_names"] = [name.encode() for name in layers]


def _set(name, value):
    return lambda file: file.__setitem__(name, value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: None, "'/conv1' names 'conv1/kernel:0', which is not in the file"),
        (
            _set("conv1/conv1/kernel:0", h5py.ExternalLink("/etc/other.h5", "/x")),
            "'/conv1/conv1/kernel:0' is an external link, to '/etc/other.h5'",
        ),
        (
            _set("conv1/conv1/kernel:0", h5py.SoftLink("/conv_dw_1/conv_dw_1/depthwise_kernel:0")),
            "'/conv1/conv1/kernel:0' is a soft link",
        ),
        (_external_storage, "keeps its values in another file, '/etc/hostname'"),
        (_virtual, "is a virtual data set"),
        (_bomb, r"would be 8,589,934,592 bytes, \d+ are stored; refused as a shape bomb"),
        (_many_names_for_one, r"all its tensors together would be .* refused as a shape bomb"),
        (_set("conv1/conv1/kernel:0", np.zeros(3, "i4")), "holds int32, expected floating numbers"),
        (_set("conv1/conv1/kernel:0", [b"a", b"b"]), "expected floating numbers"),
        (
            lambda f: f.create_dataset("conv1/conv1/kernel:0", (2,), h5py.string_dtype()),
            "holds object, expected",
        ),
        (lambda f: f.create_dataset("conv1/conv1/kernel:0", (2,), h5py.ref_dtype), "holds object, expected"),
        (_set("conv1/conv1/kernel:0", h5py.Empty("f4")), "has no shape"),
        (lambda f: f.create_dataset("conv1/conv1/kernel:0", (3, 3), "f4"), "its values were never written"),
        (lambda f: f.create_group("conv1/conv1/kernel:0"), "is a Group, expected a Dataset"),
    ],
)
@pytest.mark.parametrize("group", ["/", "model_weights"])
def test_tensors_that_are_not_what_they_seem(make, message, group, values, write):
    path = write(values, group)
    with h5py.File(path, "a") as file:
        _replace(file[group], make)
    message = message if group == "/" else message.replace("'/conv1", "'/model_weights/conv1")
    with pytest.raises(WeightsError, match=message):
        read_tensors(path)


def _layer_link(link):
    def make(file):
        del file["conv1"]
        file["conv1"] = link

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_layer_link(h5py.ExternalLink("other.h5", "/")), "'/conv1' is an external link, to 'other.h5'"),
        (_layer_link(h5py.SoftLink("/conv_dw_1")), "'/conv1' is a soft link, to '/conv_dw_1'"),
        (_layer_link(np.zeros(3, "f4")), "'/conv1' is a Dataset, expected a Group"),
        (lambda f: f.attrs.__setitem__("layer_names", [b"conv1", b"conv1"]), "names conv1 more than once"),
        (
            lambda f: f.attrs.__setitem__("layer_names", [b"conv1"]),
            "holds conv1_bn, .*'layer_names' does not name",
        ),
        (lambda f: f.attrs.__setitem__("layer_names", "conv1"), "is not a list of names"),
        (lambda f: f.attrs.__setitem__("layer_names", [1.0, 2.0]), "is not a list of names"),
        (lambda f: f.attrs.__setitem__("layer_names", [b"\xff\xfe"]), "is not UTF-8 text"),
        (
            lambda f: f.attrs.__setitem__("layer_names", [b"conv1", b"../x"]),
            r"names '\.\./x', which is not in the",
        ),
        (
            lambda f: f.attrs.__setitem__("layer_names", [b"conv1", b"/conv1"]),
            "names '/conv1', which is not in the",
        ),
        (
            lambda f: f["conv1"].attrs.__delitem__("weight_names"),
            "layer 'conv1' holds conv1/kernel:0, which its",
        ),
        (
            lambda f: f.attrs.__delitem__("layer_names"),
            r"is HDF5 but no Keras weights.*the root holds .'conv1'",
        ),
    ],
)
def test_layers_that_are_not_what_they_seem(make, message, values, write):
    path = write(values)
    with h5py.File(path, "a") as file:
        make(file)
    with pytest.raises(WeightsError, match=message):
        read_tensors(path)


def test_linked_model_weights(values, write, tmp_path):
    write(values, "model_weights", "real.h5")
    for link in (h5py.ExternalLink("real.h5", "/model_weights"), h5py.SoftLink("/nowhere")):
        with h5py.File(tmp_path / "link.h5", "w") as file:
            file["model_weights"] = link
        with pytest.raises(WeightsError, match=r"'/model_weights' is an? (external|soft) link"):
            read_tensors(tmp_path / "link.h5")


def test_keras_3_weights_file_is_named(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, kernel_initializer="ones")])
    with warnings.catch_warnings():  # Keras's Variable.__array__ knows no copy=, which NumPy 2 asks for
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
        model.save_weights(tmp_path / "x.weights.h5")
    with pytest.raises(WeightsError, match=r"the layout of Keras 3's model\.save_weights\('x\.weights\.h5'\)"):
        read_tensors(tmp_path / "x.weights.h5")
