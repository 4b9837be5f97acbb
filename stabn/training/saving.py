"""What a run leaves in its output: the newest states, from which it goes on, and its best network."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from stabn.storage import ObjectNotFound, Storage
from stabn.training.checkpoint import CheckpointError, dump_checkpoint, parse_checkpoint, read_checkpoint, serialize
from stabn.training.divergence import is_finite
from stabn.training.recipes import Recipe
from stabn.training.resuming import MAY_CHANGE, Comparison, compare, run_identity
from stabn.training.schedule import best_epoch
from stabn.training.states import BackgroundWriter, State, StateStore, copy_to_memory, dump_part

BEST = "best.pt"


class Saving:
    """Write a run's states and best network beside its training; used as a context, which waits for the last write.

    Args:
        recipe: what is trained; a state of another recipe is refused.
        storage: the run's output.
        say: shows a line.

    Attributes:
        identity: what decides on the run's result, by setting, see `run_identity`.
        confirm: asked before each write; raises when the output is another run's by then.
    """

    def __init__(self, recipe: Recipe, storage: Storage, say: Callable[[str], None]) -> None:
        self.storage = storage
        self._recipe = recipe
        self._say = lambda text: say(f"{recipe.name}: {text}")
        self.identity = run_identity(recipe.settings, recipe.videos.config, recipe.model.config, **recipe.inputs)
        self._store = StateStore(storage, recipe.settings.keep_states)
        self._writer = BackgroundWriter(self._say)
        self._unwritten_best = b""
        self._saved_at = time.monotonic()
        self.confirm: Callable[[], None] = lambda: None

    @property
    def is_due(self) -> bool:
        """Tell whether the last save is `checkpoint_minutes` ago and written."""
        minutes = self._recipe.settings.checkpoint_minutes
        return minutes > 0 and time.monotonic() - self._saved_at >= minutes * 60 and not self._writer.busy

    def newest(self) -> State | None:
        """Return the newest state that is whole, whose best network is there; None if the output has none.

        Raises:
            CheckpointError: it belongs to a run with other settings or data, none is whole, or of state and best
                network one is gone.
        """
        state = self._store.newest(self._check_identity, self._say, self._unusable)
        self._check_best(state)
        return state

    def _check_best(self, state: State | None) -> None:
        """Look for the best network that belongs to a state; write it anew if the state holds it."""
        uri, why = self.storage.locate(BEST), ""
        try:
            epochs = len(read_checkpoint(uri).get("history", ()))
        except (ObjectNotFound, CheckpointError) as error:
            epochs, why = 0, str(error)
        if state is None:
            if epochs > 1:  # of the first epoch: killed before the state
                raise CheckpointError(
                    f"{uri}: of a training of {epochs} epochs whose states are gone, so that it cannot go on; delete "
                    "it to begin anew in its place, or give another output"
                )
            return
        best = best_epoch(state.content["history"], self._recipe.settings.keep)
        if not why or not best:
            return
        if (state.content["epoch"], state.content["seen"]) != (best, 0):
            raise CheckpointError(
                f"{why}; it was the network of epoch {best}, which the newest state no longer holds: put it back, or "
                "give another output, where training begins anew"
            )
        self.storage.write(BEST, state.parts.get("average", state.parts["network"]))
        self._say(f"{uri} was gone or damaged: written again from {state.uri}")

    def changes(self, state: State) -> Comparison:
        """Return what has changed since a state of this run was saved."""
        return compare(state.content["identity"], self.identity)

    def save(
        self,
        position: Mapping[str, Any],
        network: Mapping[str, Any],
        average: Mapping[str, Any] | None,
        optimizer: Mapping[str, Any],
        best: bool,
    ) -> None:
        """Take a copy of everything and write it beside the training, the best network before the state.

        Args:
            position: JSON values: where the run is.
            network: state dict.
            average: state dict of the averaged weights, if there are any; they are then the network to use.
            optimizer: state dict.
            best: whether this network is the best so far.
        """
        self._saved_at = time.monotonic()
        content = {**position, "identity": self.identity}
        weights = {"network": copy_to_memory(network)}
        if average is not None:
            weights["average"] = copy_to_memory(average)
        optimizer = copy_to_memory(optimizer)

        def write() -> None:
            self.confirm()
            parts = {name: self._dump(tensors, position["history"]) for name, tensors in weights.items()}
            if best:
                self._unwritten_best = parts.get("average", parts["network"])
            if self._unwritten_best:  # that of an epoch before, too, if it could not be written then
                self.storage.write(BEST, self._unwritten_best)
                self._unwritten_best = b""
            parts["optimizer"] = dump_part(optimizer)
            self._store.write(f"{position['epoch']:05}-{position['seen']:09}", content, parts)

        self._writer.submit(write)

    def finish(self) -> None:
        """Wait for the last write.

        Raises:
            StorageError, RetryableError: it failed.
        """
        self._writer.finish()

    def add_history_to_best(self, history: list[dict[str, float]]) -> None:
        """Let the best network carry the metrics of the epochs after it too."""
        self.confirm()
        content = read_checkpoint(self.storage.locate(BEST))
        if content["history"] != history:
            self.storage.write(BEST, serialize({**content, "history": history}))

    def _dump(self, weights: Mapping[str, Any], history: list[dict[str, float]]) -> bytes:
        manifest = self._recipe.videos.manifest
        return dump_checkpoint(
            weights,
            self._recipe.model.config,
            self._recipe.videos.config,
            manifest.classes,
            manifest_fingerprint=manifest.fingerprint,
            stage=self._recipe.name,
            epoch=len(history),
            history=history,
        )

    def _check_identity(self, content: dict[str, Any], uri: str) -> None:
        if refused := compare(content["identity"], self.identity).refused:
            raise CheckpointError(
                f"{uri}: belongs to another run ({'; '.join(refused)}); set it back or give another output, where "
                f"training begins anew; what may change on the way is {', '.join(MAY_CHANGE)}, and where and how fast "
                "it runs"
            )

    def _unusable(self, parts: Mapping[str, bytes], uri: str) -> str:
        network = parse_checkpoint(parts["network"], uri)["model"]
        return "" if is_finite(network) else "its weights are not finite"

    def __enter__(self) -> Self:
        self._saved_at = time.monotonic()
        self._writer.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.__exit__(*error)
