"""Devices by name: one, several with commas between, the best one, or all."""

import torch

AUTO, ALL = "auto", "all"


def parse_devices(text: str) -> list[torch.device]:
    """The devices that `--device` names; raises ValueError for those that torch cannot use here.

    Args:
        text: "auto" (the machine's GPU, else the CPU), "all" (every GPU), or names such as "cuda:0,cuda:1".
    """
    gpu = torch.accelerator.current_accelerator(check_available=True)
    if text == AUTO:
        return [torch.device("cpu" if gpu is None else gpu.type)]
    if text == ALL:
        if gpu is None:
            raise ValueError("There is no GPU that torch can use here: leave --device out, or choose cpu.")
        return [torch.device(gpu.type, index) for index in range(torch.accelerator.device_count())]
    devices = [_device(name.strip(), gpu) for name in text.split(",")]
    if len(set(devices)) < len(devices):
        raise ValueError(f"--device {text} names a device twice: use --jobs for several processes on each.")
    return devices


def _device(name: str, gpu: torch.device | None) -> torch.device:
    """One device by its name."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"There is no device {name!r}: choose cpu, cuda, cuda:1, mps or xpu.") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if gpu is None or gpu.type != device.type:
        there = "the CPU alone" if gpu is None else f"cpu and {gpu.type}"
        kind = device.type.upper()
        raise ValueError(
            f"There is no {kind} device that this torch can use ({there}): choose --device cpu, or a torch for {kind}."
        )
    count = torch.accelerator.device_count()
    if ":" in name and device.index >= count:
        last = f"{gpu.type}:{count - 1}"
        raise ValueError(f"There is no {name}: this machine has {count} {gpu.type} devices, the last is {last}.")
    return device
