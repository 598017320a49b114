"""Which model runs here."""

from collections.abc import Callable

from edge_agent.reference.errors import BackendMissingError
from edge_agent.reference.model import Model, ModelSize


def model_loader(kind: str, size: ModelSize) -> Callable[[], Model]:
    """Give what loads a model; ``auto`` takes a GPU where PyTorch and a device are there."""

    def load() -> Model:
        if kind in {"auto", "torch"}:
            # PyTorch is no dependency: it is looked for only where the model is loaded.
            from edge_agent.reference.torch_model import TorchModel  # noqa: PLC0415

            # One that is there and fails is told: a full device must not make it another model.
            try:
                return TorchModel(size)
            except BackendMissingError:
                if kind == "torch":
                    raise
        from edge_agent.reference.numpy_model import NumpyModel  # noqa: PLC0415 - the other one

        return NumpyModel(size)

    return load
