"""The machine: devices, precision, memory, preemption, compiled programs, progress."""
