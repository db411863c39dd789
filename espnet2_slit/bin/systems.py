"""Commands of `slit` about a system and its machine: what it is, how it leaves."""

import argparse
import json
import os
import sys

from espnet2_slit.bin import shared


def add_commands(add: shared.Add) -> None:
    """Their options."""
    command = add(
        "prompt-embeds", embed_prompts, "write what vLLM takes as prompt_embeds (.pt)"
    )
    shared.add_files(command)
    command.add_argument("--out", required=True, help="folder of <file>.pt")
    command.add_argument("--instruction", help="other wording than a caption's")
    shared.add_model(command)

    command = add("export", export, "write the embedder for onnxruntime (extra: onnx)")
    command.add_argument("--onnx", required=True, metavar="DIR", help="folder to make")
    command.add_argument(
        "--quantize", action="store_true", help="also with weights of 8 bits"
    )
    shared.add_model(command)

    command = add("info", info, "what is in a checkpoint, without building it")
    command.add_argument("model", nargs="?", default=os.environ.get("SLIT_MODEL"))

    add_import(add)
    add("doctor", doctor, "what works on this machine, what is missing, how to add it")


def add_import(add: shared.Add) -> None:
    """Options of `slit import`."""
    command = add("import", import_system, "open a released system of another project")
    command.add_argument(
        "kind", choices=["xinstructblip"], help="whose: X-InstructBLIP"
    )
    command.add_argument(
        "--qformer",
        required=True,
        help="audio_qformer.pth or audio_qformer_improved.pth",
    )
    command.add_argument(
        "--audio_encoder", required=True, help="BEATs_iter3_plus_AS2M.pt"
    )
    command.add_argument(
        "--language_model", required=True, help="folder of Vicuna v1.1, 7b or 13b"
    )
    command.add_argument("--out", required=True, help="experiment folder to make")
    command.add_argument(
        "--qformer_tokenizer",
        default="bert-base-uncased",
        help="folder or Hugging Face name (bert-base-uncased)",
    )
    command.add_argument(
        "--layout",
        choices=["auto", "plain", "chat"],
        default="auto",
        help="words around audio and prompt: plain for audio_qformer.pth, chat (USER:,"
        " ASSISTANT:) for audio_qformer_improved.pth; auto: by the file's name",
    )
    command.add_argument(
        "--heads", type=shared.positive, help="attention heads (default: width / 64)"
    )
    command.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float16",
        help="of the language model (float16)",
    )


def embed_prompts(args: argparse.Namespace) -> int:
    """`slit prompt-embeds`."""
    from espnet2_slit.inference.prompt_embeds import write_prompt_embeds

    slit = shared.load(args)
    written = write_prompt_embeds(slit, args.files, args.out, args.instruction)
    pairs = zip(args.files, [str(path) for path in written], strict=True)
    return shared.put(args, "prompt_embeds", pairs)


def export(args: argparse.Namespace) -> int:
    """`slit export`."""
    from espnet2_slit.inference.export import export_onnx

    facts = export_onnx(shared.load(args), args.onnx, args.quantize)
    if args.json:
        print(json.dumps(facts))
        return 0
    for name, graph in facts["graphs"].items():
        print(
            f"{args.onnx}/{name}.onnx: {', '.join(graph['inputs'])} -> vectors,"
            f" {graph['error']:.1e} from PyTorch, {graph['milliseconds']:.1f} ms"
        )
    if facts["encoder_left_out"]:
        print(f"without the audio encoder: {facts['encoder_left_out']}")
    return 0


def info(args: argparse.Namespace) -> int:
    """`slit info`."""
    if not args.model:
        args.parser.error("give a model, or set SLIT_MODEL")
    from espnet2_slit.inference.system_info import describe_source

    facts = describe_source(args.model)
    if args.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    print(f"{facts['folder']}\n  can: {', '.join(facts['can'])}")
    print(f"  licence of the trained weights: {facts['licence']}")
    for name, part in facts["parts"].items():
        sizes = ", ".join(f"{k} {v}" for k, v in part["qformer"].items())
        settings = ", ".join(f"{k} {v}" for k, v in part["training"].items())
        print(f"\n{name}: {part['model']}, {part['parameters']:,} trained weights")
        print(f"  file         {part['model_file']}")
        print(f"  Q-Former     {sizes or 'default sizes'}")
        print(f"  trained on   {', '.join(part['trained_on']) or 'not recorded'}")
        print(f"  validated on {', '.join(part['validated_on']) or 'not recorded'}")
        print(f"  started from {', '.join(part['initialized_from']) or 'scratch'}")
        print(f"  settings     {settings}")
    print("\nfrozen parts")
    for name, part in facts["frozen"].items():
        print(f"  {name}: {part['name']} {part['kind']}".rstrip())
        print(f"    where    {part['where']}")
        print(f"    sha256   {part['sha256'] or 'not recorded'}")
        print(f"    licence  {part['licence']}")
    for path in facts["results"]:
        print(f"\nscores: {path}")
    return 0


def import_system(args: argparse.Namespace) -> int:
    """`slit import`."""
    from espnet2_slit.inference.import_xinstructblip import import_xinstructblip

    report = import_xinstructblip(
        args.qformer,
        args.audio_encoder,
        args.language_model,
        args.out,
        args.qformer_tokenizer,
        args.layout,
        args.heads,
        args.dtype,
    )
    if args.json:
        print(json.dumps({"out": args.out, **vars(report)}))
        return 0
    sizes = ", ".join(f"{name} {size}" for name, size in report.sizes.items())
    print(
        f"{args.out}: {report.loaded} weights of {report.source} loaded, none missing,"
        f" {len(report.buffers)} buffers not needed; words around audio and prompt:"
        f" {report.layout}\n  Q-Former: {sizes}"
    )
    for note in report.notes:
        print(f"  {note}")
    return 0


def doctor(args: argparse.Namespace) -> int:
    """`slit doctor`."""
    from espnet2_slit.inference.doctor import MISSING, OK, examine

    checks = examine()
    if args.json:
        print(json.dumps([vars(check) for check in checks], ensure_ascii=False))
    else:
        for check in checks:
            print(f"{check.status:9}{check.name:18}{check.found}")
            if check.remedy:
                print(f"{'':27}-> {check.remedy}")
    wrong = [check.name for check in checks if check.status == MISSING]
    if wrong:
        print(f"slit: cannot work without: {', '.join(wrong)}", file=sys.stderr)
        return 1
    if not args.json:
        absent = [check.name for check in checks if check.status != OK]
        print(f"\nAll that is needed is there. Without: {', '.join(absent) or 'none'}")
    return 0
