"""Decode evaluation sets: every task of a set, resumable, complete or not there at all.

Owns the decode directory of a set and the order in which its files appear: parts of
each task, then the task's files, then `decode.json`, whose presence says that the set
is complete. It leaves what a task computes to `decode_tasks`, the measures to
`scoring`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from espnet2_slit.common.files import sha256, write_json
from espnet2_slit.inference.decode_options import DecodeOptions, decoding_facts
from espnet2_slit.inference.decode_parts import Parts
from espnet2_slit.inference.decode_tasks import DECODERS, Job, write_attention
from espnet2_slit.inference.engine import Engine
from espnet2_slit.inference.evaluation_set import EvaluationSet

SCHEMA = 1


def decode_set(
    slit: Engine,
    data_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    options: DecodeOptions | None = None,
    audio: str = "auto",
    job: int = 1,
    num_jobs: int = 1,
    merge: bool | None = None,
    control: str = "",
) -> dict[str, Any] | None:
    """Decode one evaluation set.

    Args:
        slit: system.
        data_dir: the set.
        output_dir: its decode directory.
        options: DecodeOptions.
        audio: as for `EvaluationSet`.
        job: number of this job, from 1.
        num_jobs: jobs that share the set.
        merge: join the parts of all jobs; by default what one job alone does.
        control: other audio in place of each clip's own, as for `EvaluationSet`.

    Returns:
        The content of decode.json, whose `tasks` are none where the system can do none
        of the set's; None for a job whose set is not yet complete.

    Raises:
        InferenceError: parts are missing.
        DataDirError: the set cannot be used.
    """
    options = (options or DecodeOptions()).of_system(slit)
    merge = num_jobs == 1 if merge is None else merge
    folder = Path(output_dir)
    data = EvaluationSet(data_dir, slit, audio, control, options.seed)
    key = decode_key(slit, data, options)
    complete = _complete(folder, key)
    if complete is not None:
        return complete
    tasks, left_out = _tasks(slit, data)
    logging.info(
        "%s: %d samples of %d clips (%s): %s", data_dir, len(data.samples),
        len(data.clip_ids), _audio(data), ", ".join(tasks),
    )  # fmt: skip
    parts = Parts(folder, key, job, num_jobs)
    share = Job(slit, data, folder, options, parts, merge)
    started = time.monotonic()
    files: list[Path] = []
    for task in tasks:
        _, decode = DECODERS[task]
        files += decode(share)
    if not merge:
        return None
    has_queries = slit.first.model.qformer is not None
    if options.attention_clips and has_queries and {*tasks} - {"moments"}:
        files.append(write_attention(share))
    content = {
        **_facts(slit, data, options, tasks),
        "not_decoded": left_out,
        "seconds": round(time.monotonic() - started, 1),
        "key": key,
        "identities": slit.describe(),
        "files": {
            str(path.relative_to(folder)): {
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
            for path in files
        },
    }
    write_json(folder / "decode.json", content)
    parts.remove()
    return content


def _complete(folder: Path, key: str) -> dict[str, Any] | None:
    """decode.json of a complete set; what another key made is taken away."""
    done = folder / "decode.json"
    if not done.is_file():
        return None
    try:
        content = json.loads(done.read_text(encoding="utf-8"))
    except ValueError:
        content = {}  # damaged from outside; it is written again
    if content.get("key") == key:
        logging.info("%s: is complete and kept", folder)
        return content
    logging.info("%s: model, data or options have changed: decoded again", folder)
    done.unlink()
    return None


def _tasks(slit: Engine, data: EvaluationSet) -> tuple[list[str], dict[str, str]]:
    """Tasks of a set that the system can do, and {task: why not} of the others."""
    tasks, left_out = [], {}
    for task in data.tasks():
        needed, _ = DECODERS[task]
        if needed and getattr(slit, needed) is None:
            left_out[task] = f"the system has no {needed} part"
            logging.warning("%s: %s is not decoded: %s", data.dir, task, left_out[task])
        else:
            tasks.append(task)
    return tasks, left_out


def _facts(
    slit: Engine, data: EvaluationSet, options: DecodeOptions, tasks: list[str]
) -> dict[str, Any]:
    """What a protocol says of a decoded set."""
    identities = slit.describe()
    return {
        "schema": SCHEMA,
        "set": data.facts.get("name") or data.dir.name,
        "tasks": tasks,
        "n": len(data.samples),
        "clips": len(data.clip_ids),
        "audio": _audio(data),
        "model": _model_name(identities),
        "encoder": _part_name(identities["encoder"]),
        "language_model": _part_name(identities.get("language_model")),
        "decoding": decoding_facts(options, tasks),
        "seed": options.seed,
        "device": str(slit.device),
    }


def _audio(data: EvaluationSet) -> str:
    """What the system hears."""
    read = "cached features" if data.cached else "waveforms"
    return f"{data.control} in place of {read}" if data.control else read


def decode_key(slit: Engine, data: EvaluationSet, options: DecodeOptions) -> str:
    """Digest of all that decides the result."""
    from espnet2_slit.common.identity import fingerprint

    digest = hashlib.sha256()
    weights = {
        name: fingerprint(part.model_file)
        for name in ("representation", "generator")
        if (part := getattr(slit, name)) is not None
    }
    identities = [slit.encoder_identity]
    if slit.generator is not None:
        identities.append(slit.generator.options.language_model_identity)
    identities = [{k: v for k, v in i.items() if k != "path"} for i in identities]
    chosen = asdict(options)
    if "moments" not in data.tasks():
        del chosen["moment_windows_s"]
    facts = [SCHEMA, weights, identities, chosen, data.cached, data.facts]
    if data.control:
        facts.append(data.control)
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name in ("wav.scp", "segments", "utt2audio", "instruction", "references",
                 "text", "labels", "answers", "choices", "moments",
                 "feats.json"):  # fmt: skip
        path = data.dir / name
        if path.is_file():
            digest.update(f"{name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def _part_name(identity: dict[str, Any] | None) -> str | None:
    if not identity:
        return None
    name = os.path.basename(str(identity.get("path") or "")) or identity.get("kind")
    return f"{name} (sha256 {str(identity['fingerprint'])[:12]})"


def _model_name(identities: dict[str, Any]) -> str:
    names = []
    for part in ("generator", "representation"):
        if part in identities:
            path = Path(os.path.abspath(identities[part]["model_file"]))
            names.append(f"{path.parent.name}/{path.name}")
    return " + ".join(names)
