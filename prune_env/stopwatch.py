"""Seconds of device work, without waiting for it."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Times stretches of device work from its making on, without waiting for them: read it once they have ended."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._marks: list = []  # events in the stream, or elsewhere the clock's times
        self.mark()

    def mark(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def stretches(self) -> list[float]:
        """Seconds between consecutive marks; on CUDA only after a synchronisation."""
        pairs = zip(self._marks[:-1], self._marks[1:], strict=True)
        return [a.elapsed_time(b) / 1e3 if self._cuda else b - a for a, b in pairs]
