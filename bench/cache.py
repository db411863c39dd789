#!/usr/bin/env python3
"""What the cache of frozen features buys: an epoch of each stage with and without.

For each trained experiment, batches of its own training set pass through ESPnet's
loader and a training step (forward, backward, AdamW), in turns within one process:

    loader   reading and collating cached frames alone
    cached   loader and step from cached frames
    online   loader and step from audio, through the frozen encoder

All take the same samples in the same order, and the losses must agree to the cache's
rounding. Run it where the experiments' relative paths lead:

    cd egs2/slit/slit1
    python ../../../bench/cache.py exp/mini_representation exp/mini_generative \
        exp/mini_instruction --output cache.json
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import torch
from alternate import alternate, clock, machine, ratio, spread, write

from espnet2_slit.task import SLITTask


def get_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", nargs="+", help="trained from cached features")
    parser.add_argument("--samples", type=int, default=128, help="of a round")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", help="JSON; a plot goes beside it")
    return parser


class Stage:
    """One experiment's model and data.

    Args:
        experiment: its folder.
        args: of the command line.
    """

    def __init__(self, experiment: str, args: argparse.Namespace):
        weights = sorted(Path(experiment).glob("valid.*.ave.pth"))
        self.model, self.options = SLITTask.build_model_from_file(
            Path(experiment) / "config.yaml", weights[0], device=args.device
        )
        # Validation mode: the same hard negatives and no dropout for both
        self.model.eval()
        self.batch, self.device = args.batch, args.device
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
        self.data = self.options.train_data_path_and_name_and_type
        self.cache = next(Path(path) for path, name, _ in self.data if name == "feats")
        keys = [line.split()[0] for line in self.cache.open(encoding="utf-8")]
        self.total = len(keys)
        chosen = random.Random(0).sample(range(len(keys)), min(args.samples, len(keys)))
        self.keys = [keys[i] for i in sorted(chosen)]  # in the order of the files

    def batches(self, cached: bool):
        """Batches of the samples, from ESPnet's loader in this process."""
        audio = self.cache.with_name("wav.scp"), "speech", "sound"
        data = [
            (str(path), name, kind)
            for path, name, kind in (
                audio if entry[1] == "feats" and not cached else entry
                for entry in self.data
            )
        ]
        with tempfile.NamedTemporaryFile("w", suffix=".scp") as file:
            file.writelines(f"{key} _\n" for key in self.keys)
            file.flush()
            loader = SLITTask.build_streaming_iterator(
                data,
                preprocess_fn=SLITTask.build_preprocess_fn(self.options, False),
                collate_fn=SLITTask.build_collate_fn(self.options, False),
                key_file=file.name,
                dtype="float32",
                batch_size=self.batch,
                num_workers=0,
            )
            for names, batch in loader:
                yield names, {k: v.to(self.device) for k, v in batch.items()}

    def epoch(self, cached: bool, step: bool = True) -> float:
        """Mean loss over the samples."""
        total = 0.0
        for names, batch in self.batches(cached):
            if step:
                self.optimizer.zero_grad(set_to_none=True)
                loss = self.model(**batch)[0]
                loss.backward()
                self.optimizer.step()
                total += loss.item() * len(names)
        return total / len(self.keys)


def disk(stage: Stage) -> dict[str, float]:
    """Bytes of the cache a second of audio, and of 16-bit audio at its rate."""
    content = json.loads(stage.cache.with_name("feats.json").read_text())
    seconds = content["num_frames"] / content["frames_per_second"]
    return {
        "cache_mb": content["bytes"] / 2**20,
        "clips": content["num_clips"],
        "cache_bytes_per_second": content["bytes"] / seconds,
        "audio_bytes_per_second": 2.0 * content["sample_rate"],
    }


def main() -> None:
    """Race in each stage, print, write."""
    args = get_parser().parse_args()
    torch.set_num_threads(args.threads)
    key, found, bars = clock(args.device), {}, {}
    for experiment in args.experiments:
        stage = Stage(experiment, args)
        runs = {
            "loader": lambda s=stage: s.epoch(True, step=False),
            "cached": lambda s=stage: s.epoch(True),
            "online": lambda s=stage: s.epoch(False),
        }
        times, losses = alternate(runs, args.rounds, args.device)
        scale = stage.total / len(stage.keys)
        epochs = {
            name: spread([t[key] * scale for t in taken])
            for name, taken in times.items()
        }
        # loss of a stage: a few nats; the cache keeps 16 bits a value
        gap = abs(losses["cached"] - losses["online"])
        if gap > 0.01 * abs(losses["online"]):
            raise SystemExit(f"{experiment}: losses differ: {losses}")
        found[experiment] = {
            "samples_of_an_epoch": stage.total,
            "seconds_of_an_epoch": epochs,
            "online/cached": ratio(times, "online", "cached", key),
            "cached/loader": ratio(times, "cached", "loader", key),
            "losses": {k: losses[k] for k in ("cached", "online")},
            "disk": disk(stage),
        }
        for name, seconds in epochs.items():
            bars[f"{stage.options.model}, {name}"] = seconds
        print(json.dumps({experiment: found[experiment]}, indent=1))
    if args.output:
        result = {
            "what": "an epoch from cached features and from audio",
            "settings": vars(args),
            "machine": machine(args.device),
            "stages": found,
        }
        write(result, args.output, bars, f"{key} of an epoch")


if __name__ == "__main__":
    main()
