"""One of several processes that score together; test_invariance starts each with its rank, a data folder and a meeting
place. First all of them share the images, then all but the last, and so on; rank 0 prints the scores of each round."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from segadapt.config import DataConfig, NetworkConfig
from segadapt.data.loading import evaluation_batches
from segadapt.data.readers import find_pairs
from segadapt.evaluation.evaluate import Evaluation, evaluate
from segadapt.networks.weights import build_network
from segadapt.processes import ONE_PROCESS, Processes

SIZE = (48, 64)


def scores(root: Path, batch_size: int, workers: int = 0, processes: Processes = ONE_PROCESS) -> Evaluation:
    """Of one network on the images of a folder, whose labels are larger than what the network sees."""
    data = DataConfig(root=str(root / "adverse"), split="val", size=SIZE)
    images = find_pairs(data, labelled=True)
    network = build_network(NetworkConfig("efficientnet_lite0"), images.space, 0)
    batches = evaluation_batches(images, images.space, data, batch_size, workers, processes.rank, processes.count)
    return evaluate(network, batches, processes=processes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, together, root, meeting_place = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    for count in range(together, 1, -1):
        if rank < count:
            where = (meeting_place / str(count)).as_uri()
            dist.init_process_group("gloo", init_method=where, rank=rank, world_size=count)
            found = scores(root, batch_size=2, processes=Processes(rank, count))
            dist.destroy_process_group()
            if rank == 0:
                print(json.dumps(found.as_json()))
