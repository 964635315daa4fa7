"""Where the time of some work goes on a device: what runs there, by name, the longest first."""

import sys
import time
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def print_profile(
    title: str, work: Callable[[], object], device: torch.device, n_rows: int = 40
) -> None:
    """Do the work, and write to stderr the sums of what the device did: milliseconds, calls, name.

    Work of all threads and streams counts. The sum may exceed the time that passed, where streams
    overlap; far below it the device was waiting.
    """
    on_cuda = device.type == "cuda"
    kind = DeviceType.CUDA if on_cuda else DeviceType.CPU
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as found:
        began = time.perf_counter()
        work()
        if on_cuda:
            torch.cuda.synchronize(device)
        passed_ms = 1000 * (time.perf_counter() - began)
    rows = [
        (event.self_device_time_total if on_cuda else event.self_cpu_time_total, event)
        for event in found.key_averages()
        if event.device_type == kind
    ]
    rows.sort(key=lambda row: -row[0])
    busy_ms = sum(us for us, _ in rows) / 1000
    print(f"{title}: {passed_ms:.1f} ms passed, {busy_ms:.1f} ms of work", file=sys.stderr)
    for us, event in rows[:n_rows]:
        print(f"{us / 1000:9.2f} ms {event.count:6d}  {event.key[:110]}", file=sys.stderr)
    sys.stderr.flush()
