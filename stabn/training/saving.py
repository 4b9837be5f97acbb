"""What a run leaves in its output: the newest states, from which it goes on, and its best network."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from stabn.errors import StabnError
from stabn.storage import ClaimLost, ObjectNotFound, Storage
from stabn.training.background import BackgroundWriter, copies_done, copy_to_memory
from stabn.training.checkpoint import CheckpointError, dump_checkpoint, parse_checkpoint, read_checkpoint, serialize
from stabn.training.divergence import is_finite
from stabn.training.recipes import Recipe
from stabn.training.resuming import MAY_CHANGE, Comparison, compare, run_identity
from stabn.training.schedule import best_epoch
from stabn.training.states import State, StateStore, dump_part

BEST = "best.pt"


@dataclass(eq=False)
class Snapshot:
    """A copy of everything at one moment, in memory that a later moment may take again.

    Attributes:
        position: JSON values: where the run is.
        weights: state dicts, `network` and, if weights are averaged, `average`.
        optimizer: state dict.
        copied: waits until the copies are complete.
        best: the snapshot with the best network until then; None: it is stored, or there is none.
        best_is_stored: whether this one's network is in the output as the best.
    """

    position: Mapping[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    optimizer: Any = None
    copied: Callable[[], None] = lambda: None
    best: "Snapshot | None" = None
    best_is_stored: bool = False

    @property
    def to_use(self) -> Mapping[str, Any]:
        """Return the weights of the network to use: the averaged ones, if there are any."""
        return self.weights.get("average", self.weights["network"])


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
        self._writer = BackgroundWriter(self._write, self._say)
        self._snapshots: list[Snapshot] = []  # one as a rule; more while the storage is slow
        self._best: Snapshot | None = None  # as long as it is not stored
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
        recipe = self._recipe
        best = best_epoch(state.content["history"], recipe.settings.keep, recipe.attention_epochs)
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
        """Take a copy of everything and let it be written beside the training, the best network before the state.

        Nothing waits for the storage: a copy that still waits to be written gives way to this one.

        Args:
            position: JSON values: where the run is.
            network: state dict.
            average: state dict of the averaged weights, if there are any; they are then the network to use.
            optimizer: state dict.
            best: whether this network is the best so far.

        Raises:
            StorageError, RetryableError: the last writes failed one after the other.
            ClaimLost: the output is another run's by now.
        """
        self._saved_at = time.monotonic()
        self._writer.withdraw()
        self._best = self._unstored_best
        snapshot = self._unused_snapshot()
        snapshot.position = {**position, "identity": self.identity}
        weights = {"network": network} if average is None else {"network": network, "average": average}
        snapshot.weights = copy_to_memory(weights, snapshot.weights)
        snapshot.optimizer = copy_to_memory(optimizer, snapshot.optimizer)
        device = next((value.device for value in network.values()), torch.device("cpu"))
        snapshot.copied, snapshot.best_is_stored = copies_done(device), False
        if best:
            self._best = snapshot
        snapshot.best = self._best
        self._writer.submit(snapshot)

    def finish(self) -> None:
        """Wait for the last write.

        Raises:
            StorageError, RetryableError: it failed; the message says what is not saved.
        """
        try:
            self._writer.finish()
        except ClaimLost:
            raise
        except StabnError as error:
            what = "the last state" if self._unstored_best is None else "the best network and the last state"
            raise type(error)(f"{self._recipe.name}: {what} could not be saved: {error}") from error

    def add_history_to_best(self, history: list[dict[str, float]]) -> None:
        """Let the best network carry the metrics of the epochs after it too."""
        self.confirm()
        content = read_checkpoint(self.storage.locate(BEST))
        if content["history"] != history:
            self.storage.write(BEST, serialize({**content, "history": history}))

    @property
    def _unstored_best(self) -> Snapshot | None:
        return None if self._best is None or self._best.best_is_stored else self._best

    def _unused_snapshot(self) -> Snapshot:
        """Return one that is neither being written nor holds a best network that still is to be."""
        writing = self._writer.writing
        used = {id(writing), id(writing.best if writing else None), id(self._best)}
        for snapshot in self._snapshots:
            if id(snapshot) not in used:
                return snapshot
        self._snapshots.append(Snapshot())
        return self._snapshots[-1]

    def _write(self, snapshot: Snapshot) -> None:
        """Write a snapshot, and the best network until then if it could not be written yet; in the thread."""
        self.confirm()
        snapshot.copied()
        position, best = snapshot.position, snapshot.best
        parts = {name: self._dump(tensors, position["history"]) for name, tensors in snapshot.weights.items()}
        if best is not None and not best.best_is_stored:
            own = parts.get("average", parts["network"])
            data = own if best is snapshot else self._dump(best.to_use, best.position["history"])
            self.storage.write(BEST, data)
            best.best_is_stored = True
        parts["optimizer"] = dump_part(snapshot.optimizer)
        self._store.write(f"{position['epoch']:05}-{position['seen']:09}", position, parts)

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
