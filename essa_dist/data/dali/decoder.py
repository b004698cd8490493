"""The main process's part of ``data.decoder=dali``: feed the workers' batches to a pipeline, hand on its crops."""

import logging
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack

from essa_dist.data.batch import Batch
from essa_dist.data.dali import graph
from essa_dist.data.dali.arguments import flat
from essa_dist.data.dali.encoded import EncodedBatch, EncodedBatches
from essa_dist.data.rank_batches import Failed
from essa_dist.data.views import N_GLOBAL, POLICIES
from essa_dist.errors import DataError

logger = logging.getLogger(__name__)


class DaliDecoder:
    """Turns encoded batches into batches on ``device``, uint8 as those of the other decoder.

    Raises UsageError where DALI is not installed.
    """

    def __init__(self, encoded: EncodedBatches, *, threads: int, device: torch.device) -> None:
        graph.check_installed()
        self.encoded, self.threads = encoded, threads
        self.device_id: int | None = None
        """Of the GPU, found here: a thread that asks for batches may have another current one. None: the CPU."""
        if device.type == "cuda":
            self.device_id = torch.cuda.current_device() if device.index is None else device.index
        self._said = False

    def batches(self, items: Iterator[EncodedBatch | Failed]) -> Generator[Batch | Failed, None, None]:
        """The batches of ``items``, in order; a Failed comes after those before it and ends them."""
        feed = _Feed(items, self.encoded)
        pipeline = self._pipeline(feed)
        while True:
            try:
                pipeline.schedule_run()  # the first time graph.DEPTH of them
                outputs = self._share(pipeline)
            except StopIteration:
                break
            except RuntimeError as error:
                self._mend(feed, error)
                pipeline = self._pipeline(feed)
                continue
            batch = self._batch(feed.running.popleft(), outputs)
            pipeline.release_outputs()
            yield batch
        if feed.failed is not None:
            yield feed.failed

    def _pipeline(self, feed: "_Feed") -> Any:
        return graph.build(
            self.encoded.crops,
            batch_size=len(range(self.encoded.global_batch)[self.encoded.mine]),
            threads=self.threads,
            device_id=self.device_id,
            source=feed.next,
        )

    def _share(self, pipeline: Any) -> Any:
        if self.device_id is None:
            return pipeline.share_outputs()
        # Bound to torch's stream: what torch reads of a buffer comes before DALI's next use of it.
        return pipeline.share_outputs(cuda_stream=torch.cuda.current_stream(self.device_id))

    def _batch(self, encoded: EncodedBatch, outputs: Any) -> Batch:
        views = [from_dlpack(output.as_tensor()) for output in outputs]
        origin, size = encoded.origin, self.encoded.crops.local_size
        self._say(encoded)
        return Batch(
            global_crops=torch.stack(views[:N_GLOBAL]),
            local_crops=torch.stack(views[N_GLOBAL:])
            if views[N_GLOBAL:]
            else views[0].new_empty(0, len(origin.keys), 3, size, size),
            masks=origin.masks,
            keys=origin.keys,
            step=origin.request.step,
            bad=origin.bad,
            why=origin.why,
            fallback=encoded.fallback,
        )

    def _say(self, encoded: EncodedBatch) -> None:
        if encoded.fallback and not self._said:
            self._said = True
            logger.info(
                "%d of the %d images of update %d are not for DALI (16 bits, a window, an unusual file): "
                "the CPU decodes such",
                encoded.fallback,
                len(encoded.ends),
                encoded.origin.request.step + 1,
            )

    def _mend(self, feed: "_Feed", error: RuntimeError) -> None:
        """Find the images that ended the pipeline, so that they are decoded on the host; else raise what fits."""
        if "Critical error in pipeline" not in str(error):
            raise error
        images = [image for batch in feed.running for image in batch.images()]
        indices = [i for batch in feed.running for i in batch.origin.indices]
        found = {indices[i] for i in graph.refused(images, device_id=self.device_id)}
        if not found:
            reason = " ".join(str(error).split("encountered:")[-1].split())
            raise DataError(f"DALI failed: {reason}; data.decoder=torchvision does without it") from error
        self.encoded.refused |= found
        feed.rewind()


class _Feed:
    """The batches on their way into the pipeline, which takes them when it has room."""

    def __init__(self, items: Iterator[EncodedBatch | Failed], encoded: EncodedBatches) -> None:
        self.items, self.encoded = items, encoded
        self.running: deque[EncodedBatch] = deque()
        """In the pipeline, oldest first."""
        self.failed: Failed | None = None
        self._again: deque[EncodedBatch] = deque()

    def next(self) -> list[Any]:
        """The input of the pipeline for its next batch."""
        if self.failed is not None and not self._again:
            raise StopIteration
        item = self._again.popleft() if self._again else next(self.items)
        if isinstance(item, EncodedBatch) and not self.encoded.refused.isdisjoint(item.origin.indices):
            item = self.encoded[item.origin.request]
        if isinstance(item, Failed):
            self.failed = item
            self._again.clear()
            raise StopIteration
        self.running.append(item)
        crops = self.encoded.crops
        return [item.images(), *flat(item.arguments, crops, POLICIES[crops.policy])]

    def rewind(self) -> None:
        """Give what was in a broken pipeline once more."""
        self._again.extendleft(reversed(self.running))
        self.running.clear()
