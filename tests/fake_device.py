"""A second device, "cuda", simulated on the CPU: mixing the two fails as it does with CUDA.

Its tensors live in the memory of the CPU but are of a class that says otherwise. Every call into
torch from Python passes the mode below, which rejects what CUDA rejects, computes on the CPU and
marks the result. What torch does within one call is its own matter and not looked at.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cuda", 0)

# where a 0-dim CPU tensor may stand beside tensors of the device: binary arithmetic, and filling
_SCALAR_MAY = {
    "add", "sub", "mul", "div", "truediv", "floordiv", "pow", "mod", "and", "or", "xor", "eq", "ne",
    "lt", "le", "gt", "ge", "maximum", "minimum", "atan2", "hypot", "fmod", "remainder", "copysign",
    "logical_and", "logical_or", "where", "masked_fill", "fill",
}  # fmt: skip
# only the shape matters, or it is a copy
_BOTH_MAY = {"expand_as", "view_as", "reshape_as", "copy_", "_has_compatible_shallow_copy_type"}
# the CPU must know the answer, or whether it worked, before it goes on
_WAITS = {
    "item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__contains__", "equal",
    "allclose", "nonzero", "unique", "unique_consecutive", "masked_select", "bincount", "histc",
    "linalg_inv", "linalg_solve", "linalg_svd", "linalg_eigh", "linalg_cholesky", "linalg_lstsq",
    "linalg_matrix_exp",
}  # fmt: skip


class DeviceTensor(Tensor):
    """A tensor of the simulated device."""

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        copy.__dict__.update(self.__dict__)  # says whether it is a parameter
        memo[id(self)] = copy
        return copy


class DeviceGenerator(torch.Generator):
    """A source of random numbers that knows which device it is for."""

    def __new__(cls, device: torch.device | str = "cpu") -> "DeviceGenerator":
        generator = super().__new__(cls)
        generator.place = torch.device(device)
        return generator

    device = property(lambda self: self.place)


class FakeDevice(TorchFunctionMode):
    """While entered, "cuda" works; counts how often recon3d waits for it and sends it data.

    `waits` and `uploads` map "module:line" to a number of calls. Without `has_float64` the device
    refuses numbers of that type, as mps does.
    """

    def __init__(self, *, has_float64: bool = True) -> None:
        super().__init__()
        self.has_float64 = has_float64
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self._under_way: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            if name in _MOVES and isinstance(args[0], Tensor):
                return self._checked(_MOVES[name](self, *args, **kwargs))
            given = _tensors((args, kwargs))
            on_device = any(map(_is_there, given))
            if on_device:
                self._check(name, args, given)
                self._count(name, args)
            if kwargs.get("device") is not None:
                on_device = torch.device(kwargs["device"]).type == DEVICE.type
                kwargs["device"] = "cpu"
                if on_device and name in ("tensor", "as_tensor"):
                    self.uploads[_caller()] += 1
                    given = []  # as_tensor may return its argument
                    args = (args[0].clone() if isinstance(args[0], Tensor) else args[0],)
            generator = kwargs.get("generator")
            if generator is not None and generator.device.type != ("cpu", "cuda")[on_device]:
                raise RuntimeError(f"found a device type for generator of {generator.device.type}")
            if name in _BOTH_MAY or (name.endswith("_") and not name.endswith("__")):
                on_device = _is_there(given[0])
            result = func(*args, **kwargs)
            return self._checked(_placed(result, on_device, given))

    def _checked(self, result: Any) -> Any:
        """Return the result, unless it is of a type that the device lacks."""
        doubles = [t for t in _tensors(result) if _is_there(t) and t.dtype == torch.float64]
        if doubles and not self.has_float64:
            raise TypeError(f"the device does not support float64 ({_caller()})")
        return result

    def _check(self, name: str, args: Any, given: list[Tensor]) -> None:
        """Raise what CUDA raises for tensors of both devices, or for memory that is not there."""
        if name in ("data_ptr", "numpy", "__array__"):
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")
        strange = [t for t in given if not _is_there(t)]
        if not strange or name in _BOTH_MAY:
            return
        if name in ("__getitem__", "__setitem__", "index_put_", "index_put"):
            index = _tensors(args[1])
            wrong = [k for k in index if _is_there(k) and k.ndim]
            if wrong and not _is_there(args[0]):
                raise RuntimeError("indices should be on the same device as the indexed tensor")
            value = (*_tensors(args[2:]), args[0])[0]
            slices = not any(k.ndim for k in index)  # into which one may copy
            if _is_there(value) == _is_there(args[0]) or not value.ndim or slices:
                return
        plain = name.strip("_")
        binary = {plain, plain.removeprefix("r"), plain.removeprefix("i")} & _SCALAR_MAY
        if not binary or any(t.ndim for t in strange):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{DEVICE} and cpu! (in {name}, {_caller()})"
            )

    def _count(self, name: str, args: Any) -> None:
        """Note that the CPU waits for the device, or that an index has to be sent there."""
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        parts = index if isinstance(index, tuple) else (index,)
        there = [part for part in parts if isinstance(part, DeviceTensor)]
        masks = [part for part in there if part.dtype == torch.bool]
        filled = name == "__setitem__" and not isinstance(args[2], Tensor)
        repeats = name == "repeat_interleave" and isinstance((*args, None)[1], Tensor)
        if name in _WAITS or (masks and not filled) or any(not k.ndim for k in there) or repeats:
            self.waits[_caller()] += 1
        if any(isinstance(k, list) or type(k) is Tensor for k in parts):
            self.uploads[_caller()] += 1

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Move or convert; across devices it is always a copy."""
        target, rest = tensor.device, []
        for value in (*args, *(kwargs.pop(k) for k in ("device", "other") if k in kwargs)):
            if isinstance(value, Tensor):
                target = value.device
                rest.append(value.dtype)
            elif isinstance(value, str | torch.device):
                target = torch.device(value)
            elif isinstance(value, torch.dtype):
                rest.append(value)
        there = target.type == DEVICE.type
        moved = Tensor.to(tensor, *rest, **kwargs) if rest or kwargs else tensor
        if there == _is_there(tensor):
            return _placed(moved, there, [tensor])
        copy = moved.clone()
        if not kwargs.get("non_blocking"):
            (self.uploads if there else self.waits)[_caller()] += 1
        elif not there:
            self._under_way.append((copy, moved))
            copy = copy.zero_()
        return _placed(copy, there, [])

    def synchronize(self, device: object = None) -> None:
        """Wait for all that was asked of the device."""
        self.waits[_caller()] += 1
        for copy, value in self._under_way:
            Tensor.copy_(copy, value)
        self._under_way.clear()

    def event(self) -> SimpleNamespace:
        """Return an event; waiting for it lets arrive what was on its way to the CPU before."""
        awaited: list[tuple[Tensor, Tensor]] = []

        def synchronize() -> None:
            for copy, value in awaited:
                Tensor.copy_(copy, value)

        def record(stream: object) -> None:
            awaited.extend(self._under_way)
            self._under_way.clear()

        return SimpleNamespace(record=record, synchronize=synchronize)

    def _numpy(self, tensor: Tensor, *, force: bool = False) -> Any:
        if _is_there(tensor):
            self._check("numpy" if not force else "", (tensor,), [])
            self.waits[_caller()] += 1
        return Tensor.numpy(tensor, force=force)


_MOVES = {
    "to": FakeDevice._to,
    "cpu": lambda mode, tensor: mode._to(tensor, "cpu"),
    "type_as": FakeDevice._to,
    "pin_memory": lambda mode, tensor: tensor.clone(),
    "numpy": FakeDevice._numpy,
}


@contextlib.contextmanager
def fake_device(*, has_float64: bool = True) -> Iterator[FakeDevice]:
    """Within the block there is one CUDA device, on which much memory is free."""
    autocast, enabled, dtype = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype
    mode = FakeDevice(has_float64=has_float64)
    with (
        mock.patch.multiple(
            torch,
            Generator=DeviceGenerator,
            autocast=lambda kind, **rest: autocast("cpu", **rest),
            is_autocast_enabled=lambda kind: enabled("cpu"),
            get_autocast_dtype=lambda kind: dtype("cpu"),
        ),
        mock.patch.multiple(
            torch.cuda,
            is_available=lambda: True,
            is_bf16_supported=lambda **rest: True,
            device=lambda device: contextlib.nullcontext(),
            mem_get_info=lambda device: (64 * 2**30, 80 * 2**30),
            current_stream=lambda device: None,
            synchronize=mode.synchronize,
            Event=mode.event,
            empty_cache=lambda: None,
        ),
        # the parameters of a module that moves become tensors of the other class
        mock.patch.object(torch.__future__, "_overwrite_module_params_on_conversion", True),
        mode,
    ):
        yield mode


def _is_there(tensor: Tensor) -> bool:
    return isinstance(tensor, DeviceTensor)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    if not isinstance(value, (tuple, list)):
        return []
    return [tensor for part in value for tensor in _tensors(part)]


def _placed(result: Any, there: bool, given: list[Tensor]) -> Any:
    """Return the result, its new tensors marked as of the device or as of the CPU."""
    known = {id(tensor) for tensor in given}
    for tensor in _tensors(result):
        if id(tensor) not in known and _is_there(tensor) != there:
            tensor.__class__ = DeviceTensor if there else Tensor
    return result


def _caller() -> str:
    """Return the line of recon3d, or of the test, that called torch."""
    frame = sys._getframe(1)
    while frame.f_back and "/src/recon3d/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2].removesuffix('.py')}:{frame.f_lineno}"
