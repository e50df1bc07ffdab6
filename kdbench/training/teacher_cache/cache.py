"""The cache of a cohort: which of its teachers are asked, which are remembered, in which files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kdbench.config.schema import Anchor
from kdbench.training.environment import Machine
from kdbench.training.inputs import BatchStream
from kdbench.training.networks import TeacherPass
from kdbench.training.teacher_cache.applies import why_live, why_not
from kdbench.training.teacher_cache.checking import agrees
from kdbench.training.teacher_cache.entries import Entries
from kdbench.training.teacher_cache.key import Part
from kdbench.training.teacher_cache.memory import Memory, values_of
from kdbench.training.teacher_cache.opening import opened, replaced
from kdbench.training.teacher_cache.opening import say as warn
from kdbench.training.teacher_cache.place import CachePlace
from kdbench.training.teacher_cache.recalling import RecallingPass
from kdbench.training.teacher_cache.shapes import Say, safe_shapes
from kdbench.training.teacher_cache.subjects import Subject
from kdbench.types import Taps


class TeacherCache:
    """What the teachers of a cohort said before.

    Args:
        batches: The batch stream.
        subjects: The teachers, in their order.
        anchor: The protocol; it does not mix images.
        machine: Where they run.
        place: Where it is kept; None = nowhere, but what teachers say is rounded if the anchor says so.
    """

    def __init__(
        self,
        batches: BatchStream,
        subjects: Sequence[Subject],
        anchor: Anchor,
        machine: Machine,
        place: CachePlace | None,
    ) -> None:
        self.batches, self.subjects, self.anchor = batches, tuple(subjects), anchor
        self.machine, self.place = machine, place
        self.half = anchor.step.teacher_cache == "half"
        self._draws = np.random.default_rng()
        self._files: dict[tuple[int, Part, str], Entries | None] = {}
        self._shapes: dict[tuple[int, bool, str], tuple[int, ...]] = {}

    def before(self, live: TeacherPass, wanted: Sequence[Sequence[Taps]]) -> RecallingPass:
        """Return a pass that looks up what the teachers said before.

        Args:
            live: The teachers with the union of the taps.
            wanted: What each lane needs of each teacher, resolved.
        """
        memories = [self._memory(live, place, of_lanes) for place, of_lanes in enumerate(zip(*wanted, strict=True))]
        return RecallingPass(live, memories)

    def _memory(self, live: TeacherPass, place: int, wanted: Sequence[Taps]) -> Memory:
        """Return what there is of a teacher.

        If one lane needs feature maps, the teacher runs for all: reading would save nothing. What the others could have
        read is kept all the same, a write for each image against a forward pass that a later run is spared; but if all
        need maps, nobody will ask for it.
        """
        useful = any(why_live(taps) is None for taps in wanted)
        if not useful or why_not(self.anchor, live.device.type, live.precision):
            return Memory({}, (), self.half)
        taps = live.taps[place]
        return self.memory(live, place, embedding=taps.embedding, reads=why_live(taps) is None)

    def memory(self, live: TeacherPass, place: int, *, embedding: bool, reads: bool = True) -> Memory:
        """Return the files of a teacher, checked; none of them if there is no room for one, or no safe shape.

        Args:
            live: The teachers.
            place: Which of them.
            embedding: Whether its embeddings are wanted, too.
            reads: Whether what is there is used.
        """
        if self.place is None:
            return Memory({}, (), self.half)
        say = live.alone(place, Taps(embedding=embedding))
        shapes = self._safe_shapes(say, (place, embedding, live.precision))
        memory = Memory({}, shapes, self.half, reads)
        parts: tuple[Part, ...] = ("logits", "embedding") if embedding else ("logits",)
        files: dict[Part, Entries] = {}
        for part in parts if shapes else ():
            if (file := self._file(say, (place, part, live.precision), memory)) is None:
                return memory
            files[part] = file
        memory.files = files
        return memory

    def _safe_shapes(self, say: Say, name: tuple[int, bool, str]) -> tuple[int, ...]:
        if name not in self._shapes:
            images, crops = torch.arange(self.batches.batch_size), self.batches.crops.count
            self._shapes[name] = safe_shapes(say, self.batches.images_of(images * crops + images % crops))
            if not self._shapes[name]:
                teacher = self.subjects[name[0]].teaching.name
                warn(f"what teacher '{teacher}' says of an image depends on its place in the batch here; it runs live")
        return self._shapes[name]

    def _file(self, say: Say, name: tuple[int, Part, str], memory: Memory) -> Entries | None:
        if name in self._files:
            return self._files[name]
        (place, part, precision), folder = name, self.place
        assert folder is not None
        key = self.subjects[place].key(part, "float16" if self.half else "float32", precision, self.machine)
        file = opened(folder, key)
        if file is not None:
            sound = agrees(file, lambda numbers: values_of(memory.now(say, self.batches, numbers), part), self._draws)
            file = file if sound else replaced(folder, file)
        self._files[name] = file
        return file
