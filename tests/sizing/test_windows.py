"""Output sizes and paddings against counting, XLA and Keras."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import sizing


def positions(n, f, stride, before, after, dilation):
    """First positions of the filter, counted one by one, and what is left over behind the last."""
    firsts, first = [], -before
    while first + dilation * (f - 1) < n + after:
        firsts.append(first)
        first += stride
    return len(firsts), n + after - (firsts[-1] + dilation * (f - 1) + 1) if firsts else 0


CASES = [
    (n, f, s, pads, d)
    for n in range(1, 11)
    for f in range(1, 5)
    for s in range(1, 5)
    for pads in ((0, 0), (1, 1), (0, 1), (3, 0))
    for d in (1, 2)
]


def result(*args, **options):
    """The size, or the words of the error."""
    try:
        return sizing.output_size(*args, **options)
    except ValueError as error:
        return str(error)


def test_exact_and_floor_count_the_filters_places():
    for n, f, s, pads, d in CASES:
        count, left = positions(n, f, s, *pads, d)
        padding = pads[0] if pads[0] == pads[1] else pads
        exact, floor = (result(n, f, s, padding, dilation=d, rule=rule) for rule in ("exact", "floor"))
        if count == 0:
            assert f"larger than the input of {n}" in exact and exact == floor
        elif left:
            assert "does not fit" in exact and floor == count
        else:
            assert exact == floor == count


def test_what_an_error_says_fits_does_fit():
    seen = 0
    for n, f, s, pads, d in CASES:
        padding = pads[0] if pads[0] == pads[1] else pads
        message = result(n, f, s, padding, dilation=d)
        if isinstance(message, int):
            continue
        if "does not fit" not in message:
            wanted = int(re.search(r"padding of at least (\d+)", message)[1])
            at_most = int(re.search(r"take one of at most (\d+)", message)[1])
            assert sizing.output_size(n, f, s, wanted, dilation=d, rule="floor") >= 1
            assert sizing.output_size(n, at_most, s, padding, dilation=d, rule="floor") >= 1
            continue
        fits = message.split("It fits ")[1].split(";")[0]
        paddings, strides, inputs = (
            [eval(text) for text in re.split(r", (?![^(]*\))| or ", found[1])] if found else []
            for found in (
                re.search(r"padding (.+?), (?:or )?with stride", fits),
                re.search(r"stride (.+?), or with", fits),
                re.search(r"input of (.+)", fits),
            )
        )
        assert strides and inputs
        for p in paddings:
            assert sizing.output_size(n, f, s, p, dilation=d) >= 1
        for other in strides:
            assert sizing.output_size(n, f, other, padding, dilation=d) >= 1
        for size in inputs:
            assert sizing.output_size(size, f, s, padding, dilation=d) >= 1
        seen += len(paddings)
    assert seen > 100


def test_same_is_xlas_padding():
    sizes = np.arange(1, 30)
    for f in range(1, 8):
        for s in range(1, 10):  # strides above the filter included
            for d in (1, 2, 3):
                reach = d * (f - 1) + 1
                theirs = jax.lax.padtype_to_pads(sizes, [reach] * len(sizes), [s] * len(sizes), "SAME")
                ours = [sizing.same_padding(int(n), f, s, dilation=d) for n in sizes]
                assert ours == [tuple(map(int, pads)) for pads in theirs]
                for n, pads in zip(sizes, ours, strict=True):
                    out = sizing.output_size(int(n), f, s, rule="same", dilation=d)
                    assert out == -(-n // s) == positions(int(n), f, s, *pads, d)[0]


@pytest.mark.parametrize(("n", "f", "stride"), [(224, 3, 2), (225, 3, 2), (32, 5, 1), (9, 2, 5), (10, 4, 3)])
def test_same_is_what_keras_computes(n, f, stride):
    from keras import ops

    x, kernel = np.arange(1.0, n + 1, dtype=np.float32), np.linspace(0.5, 1.5, f, dtype=np.float32)
    theirs = ops.conv(x[None, :, None], kernel[:, None, None], stride, "same")[0, :, 0]
    before, after = sizing.same_padding(n, f, stride)
    padded = np.pad(x, (before, after))
    ours = [padded[i : i + f] @ kernel for i in range(0, n + before + after - f + 1, stride)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert len(ours) == sizing.output_size(n, f, stride, rule="same")


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("n", "f", "stride", "dilation"), [(7, 3, 3, 1), (15, 2, 2, 1), (33, 5, 1, 3), (9, 1, 4, 1)])
def test_sizes_are_those_of_keras_layers(padding, n, f, stride, dilation):
    from keras import layers

    ours = sizing.output_size(n, f, stride, dilation=dilation, rule="same" if padding == "same" else "floor")
    conv = layers.Conv2D(1, f, stride, padding, dilation_rate=dilation)
    assert conv.compute_output_shape((None, n, n, 1))[1] == ours
    if dilation == 1:
        assert layers.MaxPooling2D(f, stride, padding).compute_output_shape((None, n, n, 1))[1] == ours


def test_formulas_are_spelled_out():
    assert sizing.formula(32, 5) == "(32 - 5 + 2·0)/1 + 1 = 28"
    assert sizing.formula(32, 5, 2, (0, 1)) == "(32 - 5 + 0 + 1)/2 + 1 = 15"
    assert sizing.formula(13, 3, dilation=2) == "(13 - (2·2 + 1) + 2·0)/1 + 1 = 9"
    assert sizing.formula(7, 3, 3, rule="floor") == "floor((7 - 3 + 2·0)/3) + 1 = 2"
    assert sizing.formula(224, 3, 2, rule="same") == "ceil(224/2) = 112, P = (0, 1)"


def test_a_formula_is_true_arithmetic():
    from math import ceil, floor  # noqa: F401  (names in the formulas)

    for n, f, s, pads, d in CASES:
        for rule in sizing.RULES:
            try:
                text = sizing.formula(n, f, s, pads if rule != "same" else 0, dilation=d, rule=rule)
            except ValueError:
                continue
            left, right = text.split(", ")[0].replace("·", "*").split(" = ")
            assert eval(left) == int(right), text


def test_a_value_next_to_a_whole_number_does_not_read_as_one():
    with pytest.raises(ValueError, match=r"= 2\.001\. It"):
        sizing.output_size(1001, 1, 999)
    with pytest.raises(ValueError, match=r"= 2\.999\. It"):
        sizing.output_size(2000, 1, 1000)


def test_numbers_that_are_no_python_ints():
    assert sizing.output_size(np.int64(7), jnp.int32(3), stride=np.uint8(2)) == 3
    assert type(sizing.output_size(np.int64(7), np.int64(3))) is int


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((0, 3), {}, "input size must be a whole number of at least 1, not 0"),
        ((7, -3), {}, "filter must be a whole number of at least 1, not -3"),
        ((7, 3, 0), {}, "stride must be a whole number of at least 1, not 0"),
        ((7, True), {}, "filter must be a whole number of at least 1, not True"),
        ((7.0, 3), {}, "input size must be a whole number of at least 1, not 7.0"),
        (("7", 3), {}, "input size must be a whole number of at least 1, not '7'"),
        ((7, np.bool_(True)), {}, "filter must be a whole number"),
        ((None, 3), {}, "not None"),
        ((7, 3, 1, -1), {}, "padding must be a whole number of at least 0, not -1"),
        ((7, 3, 1, (0, -1)), {}, "padding must be a whole number of at least 0, not -1"),
        ((7, 3, 1, (1, 2, 3)), {}, r"padding must be a number or \(before, after\), not \(1, 2, 3\)"),
        ((7, 3, 1, "same"), {}, "not 'same'; 'same' is a rule: rule='same'"),
        ((7, 3), {"dilation": 0}, "dilation must be a whole number of at least 1, not 0"),
        ((7, 9), {}, "filter of 9 is larger than the input of 7; take one of at most 7, or a padding of at least 1"),
        ((7, 12, 1, 1), {}, r"input of 7 with padding 1 \+ 1 \(9 in all\); take one of at most 9, or .* at least 3"),
        ((7, 3), {"dilation": 4}, "filter of 3 dilated by 4 spans 9 positions and is larger .* at most 2"),
        ((7, 3), {"rule": "flor"}, "no rule 'flor'; did you mean 'floor'"),
        ((7, 3), {"rule": "SAME"}, "no rule 'SAME'; did you mean 'same'"),
        ((7, 3), {"rule": "valid"}, "no rule 'valid'; did you mean 'floor'"),
        ((7, 3), {"rule": None}, "no rule None"),
        ((7, 3, 1, 1), {"rule": "same"}, "'same' sets the padding itself; leave padding=1 away"),
    ],
)
def test_bad_sizes_are_named(args, options, message):
    with pytest.raises(ValueError, match=message):
        sizing.output_size(*args, **options)


def test_bad_arguments_of_the_paddings_are_named():
    with pytest.raises(ValueError, match="stride must be"):
        sizing.same_padding(7, 3, 0)
    with pytest.raises(ValueError, match="filter must be"):
        sizing.keeping_padding(0)
    with pytest.raises(ValueError, match="input size must be"):
        sizing.fitting_paddings(-7, 3)


def test_absurd_sizes_end_in_an_error_too():
    with pytest.raises(ValueError, match="does not fit"):
        sizing.output_size(10**40 + 7, 3, 10**30)
