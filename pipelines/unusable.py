"""Photos that turn out to be undecodable while a scene is trained: left out with a warning, as long as they are few."""

import logging
from collections.abc import Mapping, Sequence

from infnerf_tiles.data.records import Rejected
from infnerf_tiles.errors import PhotoError

MOST_UNUSABLE = 0.05
"""Share of the training photos above which something is wrong with all of them; one may always be left out."""
_NUM_SHOWN = 3
_NUM_WARNED = 20

_log = logging.getLogger(__name__)


class UnusablePhotos:
    """Training photos that cannot be decoded, as tasks come across them."""

    def __init__(self, names: Sequence[str], num_training: int) -> None:
        """names: of all photos. num_training: how many of them train."""
        self._names, self._num_training = names, num_training
        self._reasons: dict[int, str] = {}

    def add(self, found: Mapping[int, str]) -> None:
        """Take note of photos (rows) with the reasons, and warn of each once.

        PhotoError if they are more than MOST_UNUSABLE of the training photos, or all.
        """
        for photo, reason in sorted(found.items()):
            if photo not in self._reasons:
                self._reasons[photo] = reason
                if len(self._reasons) <= _NUM_WARNED:
                    _log.warning("%s; the photo is left out of the training", reason)
        count = len(self._reasons)
        if count > max(1.0, MOST_UNUSABLE * self._num_training) or 0 < self._num_training <= count:
            shown = "; ".join(reason for _, reason in sorted(self._reasons.items())[:_NUM_SHOWN])
            raise PhotoError(
                f"photos: expected at most {MOST_UNUSABLE:.0%} of the {self._num_training} training photos to be "
                f"undecodable, got {count} so far: {shown}"
            )

    def listed(self) -> tuple[Rejected, ...]:
        """All of them by row, with the reasons."""
        return tuple(Rejected(self._names[photo], reason) for photo, reason in sorted(self._reasons.items()))
