#!/usr/bin/env python3
"""Encode the clips of data directories once with the frozen audio encoder."""

import argparse
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str2bool

from espnet2_slit.common.files import read_yaml
from espnet2_slit.data import feature_cache, kaldi_matrix


def get_parser() -> argparse.ArgumentParser:
    """Command line of slit_encode."""
    parser = argparse.ArgumentParser(
        description="Encode every clip of a data directory once, with the frozen audio"
        " encoder. Run it again to continue: whole shards are kept. With --num_jobs"
        " above 1, run every --job, then once with --merge true.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data_dir", required=True, nargs="+", help="directories with wav.scp"
    )
    parser.add_argument(
        "--output_dir",
        required=True,
        nargs="+",
        help="dump/<tag>/<set> for each; later ones point at the clips of earlier ones",
    )
    parser.add_argument(
        "--config",
        help="training YAML; its audio_encoder and audio_encoder_conf are used",
    )
    parser.add_argument(
        "--audio_encoder", help="beats | hugging_face | espnet | python"
    )
    parser.add_argument(
        "--audio_encoder_conf",
        action=NestedDictAction,
        default={},
        help="keywords of the encoder, e.g. path=beats.pt; added to --config's",
    )
    parser.add_argument(
        "--reuse",
        nargs="*",
        default=[],
        metavar="DIR",
        help="finished caches whose clips need not be encoded again",
    )
    parser.add_argument("--job", type=int, default=1, help="number of this job, from 1")
    parser.add_argument("--num_jobs", type=int, default=1, help="jobs in the array")
    parser.add_argument(
        "--merge",
        type=str2bool,
        default=False,
        help="join what the jobs wrote (one job alone does it itself)",
    )
    parser.add_argument(
        "--ngpu", type=int, default=0, help="0: CPU; else one GPU a job"
    )
    parser.add_argument(
        "--batch_seconds",
        type=float,
        default=160.0,
        help="padded seconds of audio that are encoded at once",
    )
    parser.add_argument(
        "--shard_clips", type=int, default=1000, help="clips per file; what is resumed"
    )
    parser.add_argument(
        "--bad_audio",
        choices=["stop", "drop"],
        default="stop",
        help="what to do with audio that cannot be used; 'drop' counts and names it",
    )
    parser.add_argument(
        "--dtype",
        choices=["uint16", "float32"],
        default="uint16",
        help="uint16: 2 bytes a value, float32 only for matrices it would harm",
    )
    parser.add_argument(
        "--verify",
        type=str2bool,
        default=False,
        help="read a finished cache again and compare its checksums; encode nothing",
    )
    parser.add_argument("--log_level", default="INFO", type=str.upper)
    return parser


def encoder_options(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """(name, keywords) of the encoder, from the YAML and the command line."""
    config = {}
    if args.config:
        config = read_yaml(
            args.config,
            "Give a training configuration.",
            kaldi_matrix.FeatureCacheError,
        )
    name = args.audio_encoder or config.get("audio_encoder")
    if not name:
        raise kaldi_matrix.FeatureCacheError(
            "No audio encoder is named. Give --audio_encoder, or --config with the key"
            " audio_encoder."
        )
    return name, {**(config.get("audio_encoder_conf") or {}), **args.audio_encoder_conf}


def encoder_precision(output_dirs: Iterable[str], ngpu: int) -> str:
    """What `precision: auto` is: that of a cache which is there, else the machine's."""
    from espnet2_slit.common.precision import choose_precision

    for output_dir in output_dirs:
        if (Path(output_dir) / "feats.json").is_file():
            identity = feature_cache.check_features(output_dir)["identity"]
            return identity["precision"]
    return choose_precision("auto", "cuda" if ngpu else "cpu")


def run(args: argparse.Namespace) -> None:
    """Encode, merge or verify as asked."""
    if not 1 <= args.job <= args.num_jobs:
        raise kaldi_matrix.FeatureCacheError(
            f"--job {args.job}: expected a number from 1 to {args.num_jobs}."
        )
    if len(args.data_dir) != len(args.output_dir):
        raise kaldi_matrix.FeatureCacheError(
            f"--output_dir: expected one for each of {len(args.data_dir)} --data_dir,"
            f" found {len(args.output_dir)}."
        )
    if args.verify:
        for output_dir in args.output_dir:
            feature_cache.verify_checksums(output_dir)
            logging.info("%s: every shard agrees with its checksum", output_dir)
        return
    # Costs seconds to import, so not for --help or --verify.
    import torch

    from espnet2_slit.model.audio_encoder import build_audio_encoder

    if args.ngpu and not torch.cuda.is_available():
        raise RuntimeError(
            f"--ngpu {args.ngpu}: expected a GPU, torch {torch.__version__} finds none."
            " Give --ngpu 0 to work on the CPU (slit doctor says more)."
        )
    name, conf = encoder_options(args)
    if conf.get("precision") == "auto":
        conf["precision"] = encoder_precision(args.output_dir, args.ngpu)
    encoder = build_audio_encoder(name, **conf)
    if encoder.trainable:
        raise kaldi_matrix.FeatureCacheError(
            "audio_encoder_conf.layer: weighted frames change while training, so they"
            " cannot be cached. Choose a layer, or train without a cache."
        )
    reuse = list(args.reuse)
    for data_dir, output_dir in zip(args.data_dir, args.output_dir, strict=True):
        if feature_cache.is_current(data_dir, output_dir, encoder.identity()):
            logging.info("%s: is encoded and kept", output_dir)
            reuse.append(output_dir)
            continue
        finished = _encode_set(args, encoder, data_dir, output_dir, reuse)
        # Merging must see the sets as the jobs did, when none was finished.
        if finished and not args.merge:
            reuse.append(output_dir)


def _encode_set(
    args: argparse.Namespace,
    encoder: Any,
    data_dir: str,
    output_dir: str,
    reuse: list[str],
) -> bool:
    """Encode or merge one set; True if its cache is finished then."""
    work = feature_cache.plan(data_dir, encoder.identity(), reuse, args.shard_clips)
    logging.info(
        "%s: %d samples of %d clips, %d of them reused, %d shards",
        data_dir, len(work.samples), len(work.clips), len(work.reused),
        len(work.shards),
    )  # fmt: skip
    if not args.merge:
        device = f"cuda:{_gpu(args.job)}" if args.ngpu else "cpu"
        feature_cache.encode(
            work,
            encoder.to(device),
            output_dir,
            args.job,
            args.num_jobs,
            args.batch_seconds,
            device,
            args.bad_audio,
            0.0 if args.dtype == "float32" else kaldi_matrix.TOLERANCE,
        )
    if not args.merge and args.num_jobs > 1:
        return False
    facts = feature_cache.encoder_facts(encoder)
    done = feature_cache.merge(work, data_dir, output_dir, facts)
    logging.info(
        "%s: %d clips (%d dropped), %d frames of width %d, %.3g GB",
        output_dir, done["num_clips"], len(done["dropped"]),
        done["num_frames"], done["width"], done["bytes"] / 1e9,
    )  # fmt: skip
    return True


def _gpu(job: int) -> int:
    """GPU of a job when several share a machine; a scheduler shows each job its own."""
    import torch

    return (job - 1) % torch.cuda.device_count()


def main(cmd: list[str] | None = None) -> int:
    """Entry point; wrong input ends with exit status 1 and one clear line."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(
        level=args.log_level,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    try:
        run(args)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        logging.debug("", exc_info=True)
        print(f"slit_encode: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
