"""SLITTask: options, and the models built from them, for the three training stages.

Owns which parts a configuration asks for, their identities (what a model was trained
with must be there again when it is loaded) and the optimizer's parameters. The parts
are in their own modules; training, launching and checkpoints are ESPnet's.
"""

import argparse
import inspect
import logging
from pathlib import Path
from typing import Any, Callable, Collection, Dict, List, Optional, Tuple, Union

import numpy as np
import torch
from typeguard import typechecked

from espnet2_slit.common import compat
from espnet2_slit.common.files import read_yaml
from espnet2_slit.common.identity import identity_differences
from espnet2_slit.common.precision import choose_precision
from espnet2_slit.common.weights import load_strictly, read_weights
from espnet2_slit.data.feature_cache import check_features
from espnet2_slit.data.preprocessor import (
    SLITPreprocessor,
    load_qformer_tokenizer,
    qformer_tokenizer_identity,
)
from espnet2_slit.data.training_files import training_files
from espnet2_slit.model.espnet_model import (
    PromptedModel,
    RepresentationModel,
    SLITModel,
)
from espnet2_slit.model.frame_stack import CONNECTORS, build_frame_stack
from espnet2_slit.model.qformer import QFormer
from espnet2_slit.train.checkpoint import (
    can_be_resumed,
    load_init_params,
    read_training_config,
)
from espnet2_slit.train.scheduler import WarmupCosine
from espnet2_slit.train.trainer import SLITTrainer

compat.prepare_espnet_import("espnet2.tasks.abs_task", "espnet2.train.collate_fn")

from espnet2.tasks.abs_task import (  # noqa: E402
    AbsTask,
    optim_classes,
    scheduler_classes,
)
from espnet2.train.abs_espnet_model import AbsESPnetModel  # noqa: E402
from espnet2.train.class_choices import ClassChoices  # noqa: E402
from espnet2.train.collate_fn import CommonCollateFn  # noqa: E402
from espnet2.train.trainer import Trainer  # noqa: E402
from espnet2.utils.nested_dict_action import NestedDictAction  # noqa: E402
from espnet2.utils.types import str_or_none  # noqa: E402

scheduler_classes["warmupcosine"] = WarmupCosine  # beside ESPnet's own names

model_choices = ClassChoices(
    "model",
    classes=dict(
        representation=RepresentationModel,
        generative=PromptedModel,
        instruction=PromptedModel,
    ),
    type_check=AbsESPnetModel,
    default="representation",
)
# Which frozen part an identity in the config belongs to, and the option that names it.
IDENTITIES = {
    "audio_encoder_identity": "audio_encoder_conf.path",
    "language_model_identity": "language_model",
    "qformer_tokenizer_identity": "qformer_tokenizer",
}


class IdentityError(RuntimeError):
    """A frozen part is not the one that the model was trained with."""


class SLITTask(AbsTask):
    """Audio-language training: representation, generative, instruction."""

    num_optimizers: int = 1
    class_choices_list = [model_choices]  # --model and --model_conf
    trainer = SLITTrainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser):
        """Options beside ESPnet's."""
        # Defaults of ESPnet that do not fit: there is no attention plot, plots need
        # optional packages, and averaging over two criteria is wrong in 202511.
        parser.set_defaults(
            num_att_plot=0,
            use_tensorboard=compat.is_installed("tensorboard"),
            use_matplotlib=compat.is_installed("matplotlib"),
            best_model_criterion=[("valid", "loss", "min")],
            optim="adamw",
        )
        group = parser.add_argument_group(description="Task related")
        for class_choices in cls.class_choices_list:
            class_choices.add_arguments(group)
        group.add_argument(
            "--audio_encoder",
            type=str_or_none,
            default=None,
            help="Frozen audio encoder: beats, hugging_face, espnet or python. "
            "Not needed beside --features",
        )
        group.add_argument(
            "--audio_encoder_conf",
            action=NestedDictAction,
            default=dict(),
            help="Keywords of the audio encoder, path first of all",
        )
        group.add_argument(
            "--features",
            type=str,
            default="",
            help="feats.json of the training set's cached features. The audio encoder "
            "is then not built, and the data name is feats instead of speech",
        )
        group.add_argument(
            "--qformer_conf",
            action=NestedDictAction,
            default=dict(),
            help="Keywords of QFormer: width, layers, heads, num_queries, ...",
        )
        group.add_argument(
            "--connector",
            choices=CONNECTORS,
            default="qformer",
            help="What turns frames into the language model's prompt: the Q-Former, or "
            "stacked frames with one layer (linear) or two (mlp); the latter are for "
            "generative and instruction, without --init_param of representation",
        )
        group.add_argument(
            "--connector_conf",
            action=NestedDictAction,
            default=dict(),
            help="Keywords of build_frame_stack: stack, hidden",
        )
        group.add_argument(
            "--qformer_tokenizer",
            type=str,
            default="",
            help="Folder or hub name of the Q-Former's BERT-style tokenizer",
        )
        group.add_argument(
            "--qformer_init",
            type=str,
            default="",
            help="Folder, hub name or file of BERT, LAVIS or transformers weights to "
            "start from. Left out when --init_param gives the Q-Former",
        )
        group.add_argument(
            "--qformer_init_conf",
            action=NestedDictAction,
            default=dict(),
            help="Keywords of load_pretrained_qformer: reinitialise, modality",
        )
        group.add_argument(
            "--language_model",
            type=str,
            default="",
            help="Folder or hub name of the frozen language model; not for "
            "representation",
        )
        group.add_argument(
            "--language_model_conf",
            action=NestedDictAction,
            default=dict(),
            help="Keywords of load_language_model: dtype, revision, lora, ...",
        )
        group = parser.add_argument_group(
            description="Data: instead of --train_data_path_and_name_and_type, "
            "--train_shape_file, --valid_... and --features"
        )
        for part in ("train", "valid"):
            group.add_argument(
                f"--{part}_dir",
                type=str,
                default="",
                help="Set that `slit encode` or `slit data prepare` made: its files "
                "are found by their names",
            )
        group.add_argument(
            "--model_file",
            type=str,
            default="",
            help="Weights that slit.json names when the training is over, e.g. "
            "valid.loss.ave.pth; default: the best. For slit_train",
        )
        group = parser.add_argument_group(description="Preprocess related")
        group.add_argument(
            "--preprocessor_conf",
            action=NestedDictAction,
            default=dict(),
            help="Keywords of SLITPreprocessor: max_text_length, prompt, ...",
        )
        group = parser.add_argument_group(description="Inference related")
        group.add_argument(
            "--inference_conf",
            action=NestedDictAction,
            default=dict(),
            help="How SLIT asks the trained model where a call does not say, by task: "
            "{caption: {instruction: ..., options: {...}}, question_answering: ...}. "
            "Empty: in the words of the templates",
        )
        group = parser.add_argument_group(
            description="Recorded in config.yaml by training, checked when loading"
        )
        for name in IDENTITIES:
            group.add_argument(f"--{name}", action=NestedDictAction, default=None)
        group.add_argument("--initialized_from", type=str, nargs="*", default=[])
        group.add_argument("--init_fingerprints", type=str, nargs="*", default=[])

    # ------------------------------------------------------------------ data

    @classmethod
    @typechecked
    def build_collate_fn(cls, args: argparse.Namespace, train: bool) -> Callable[
        [Collection[Tuple[str, Dict[str, np.ndarray]]]],
        Tuple[List[str], Dict[str, torch.Tensor]],
    ]:
        """Pad with zeros; who reads a sequence masks it by its lengths."""
        return CommonCollateFn(
            float_pad_value=0.0, int_pad_value=0, not_sequence=["clip_id", "text_id"]
        )

    @classmethod
    @typechecked
    def build_preprocess_fn(
        cls, args: argparse.Namespace, train: bool
    ) -> Optional[Callable[[str, Dict[str, np.ndarray]], Dict[str, np.ndarray]]]:
        """Strings to ids; needs tokenizers, no weights."""
        facts = args.audio_encoder_identity or {}
        conf = dict(args.preprocessor_conf)
        if train and conf.get("augment"):
            # A mixture's other clip is one of the same set.
            own = {"folder": getattr(args, "train_dir", "") or ""}
            conf["augment"] = {**own, **conf["augment"]}
        if args.connector != "qformer":
            conf["qformer_instruction"] = False
        preprocessor = SLITPreprocessor(
            train=train,
            model=args.model,
            qformer_tokenizer=args.qformer_tokenizer,
            language_model=args.language_model,
            language_model_conf=args.language_model_conf,
            feature_width=facts.get("width", 0),
            **conf,
        )
        if train and vars(args).get("train_dir"):
            preprocessor.say_unknown(args.train_dir)
        return preprocessor

    @classmethod
    def required_data_names(
        cls, train: bool = True, inference: bool = False
    ) -> Tuple[str, ...]:
        """`text` to train on; which of speech and feats, see `check_arguments`."""
        return () if inference else ("text",)

    @classmethod
    def optional_data_names(
        cls, train: bool = True, inference: bool = False
    ) -> Tuple[str, ...]:
        """Audio, paraphrases, instructions and clip ids."""
        return ("speech", "feats", "text", "text_variants", "instruction", "clip")

    # ------------------------------------------------------------------ training

    @classmethod
    @typechecked
    def main_worker(cls, args: argparse.Namespace):
        """Train (or collect statistics) in this process."""
        cls.find_data(args)
        cls.check_arguments(args)
        cls.trainer = Trainer if cls._uses_deepspeed(args) else SLITTrainer
        if args.collect_stats:
            args.model_conf.setdefault("extract_feats_in_collect_stats", False)
        args.init_fingerprints = _fingerprints(args.init_param)
        previous = read_training_config(Path(args.output_dir)) if args.resume else None
        if previous is not None:
            cls._check_run_so_far(args, previous)
        super().main_worker(args)

    @classmethod
    def _check_run_so_far(
        cls, args: argparse.Namespace, previous: Dict[str, Any]
    ) -> None:
        """A run goes on with the frozen parts and from the checkpoint it began with."""
        before = argparse.Namespace(**previous)
        for name in IDENTITIES:
            if getattr(args, name) is None:
                setattr(args, name, previous.get(name))
            if _configured(args, name) != _configured(before, name):
                _forget_place(args, name)
        began = previous.get("init_fingerprints", args.init_fingerprints)
        if began != args.init_fingerprints:
            start = " ".join(previous.get("initialized_from", [])) or "no checkpoint"
            raise IdentityError(
                f"{args.output_dir}: expected to go on with a training that began from "
                f"{' '.join(args.init_param) or 'no checkpoint'}, found one that began "
                f"from {start}, as it was then. Remove the folder, or train in another "
                "one (--output_dir; slit.sh --tag)."
            )

    @classmethod
    def _uses_deepspeed(cls, args: argparse.Namespace) -> bool:
        """Whether ESPnet's own trainer for DeepSpeed, beside which it accepts no other.

        Not in a single process: ESPnet then says so and trains without DeepSpeed.
        """
        if not (args.use_deepspeed and args.distributed):
            return False
        if not compat.is_installed("deepspeed"):
            raise ValueError(
                "--use_deepspeed true: expected the package deepspeed, found none. "
                "pip install deepspeed, or leave the option out."
            )
        if not Path(args.deepspeed_config or "").is_file():
            raise ValueError(
                "--use_deepspeed true: expected a DeepSpeed configuration, found "
                f"{args.deepspeed_config!r}. Give --deepspeed_config, for example "
                "conf/full/deepspeed.json."
            )
        return True

    @classmethod
    def find_data(cls, args: argparse.Namespace) -> None:
        """Fill in ESPnet's data options from --train_dir and --valid_dir.

        Raises:
            ValueError: both ways are used and name different files.
            FileNotFoundError: a directory lacks a file.
        """
        for part in ("train", "valid"):
            folder = getattr(args, f"{part}_dir", "")  # ESPnet-EZ has no such option
            if not folder:
                continue
            files = training_files(
                folder, args.model == "instruction", args.iterator_type == "category"
            )
            found = {
                f"{part}_data_path_and_name_and_type": files.data,
                f"{part}_shape_file": [files.lengths],
            }
            if part == "train":
                found["features"] = files.features
            for option, value in found.items():
                given = getattr(args, option)
                if given:
                    raise ValueError(
                        f"--{option}: expected nothing beside --{part}_dir {folder}, "
                        f"found {given}. Give the folder or the files, not both."
                    )
                setattr(args, option, value)

    @classmethod
    def check_arguments(cls, args: argparse.Namespace) -> None:
        """Options that exclude or need each other.

        Raises:
            ValueError: says which, and what to give.
        """
        wanted = "feats" if args.features else "speech"
        other = "speech" if args.features else "feats"
        for option in (
            "train_data_path_and_name_and_type",
            "valid_data_path_and_name_and_type",
        ):
            names = [name for _, name, _ in getattr(args, option)]
            if wanted not in names or other in names:
                raise ValueError(
                    f"--{option}: expected {wanted} "
                    + (
                        f"(--features {args.features} is given)"
                        if args.features
                        else "(no --features is given)"
                    )
                    + f" and not {other}, found the names {', '.join(names) or 'none'}."
                    " Give wav.scp,speech,sound; or feats.scp,feats,kaldi_ark with "
                    "--features feats.json."
                )
        cls._check_parts(args)

    @classmethod
    def _check_parts(cls, args: argparse.Namespace) -> None:
        if args.model != "representation" and not args.language_model:
            raise ValueError(
                f"--model {args.model}: expected --language_model, found none. Give "
                "the folder or hub name of the frozen language model."
            )
        if args.model == "representation" and args.language_model:
            raise ValueError(
                "--model representation: expected no --language_model, found "
                f"{args.language_model!r}. The language model enters in the "
                "generative stage."
            )
        if args.model == "representation" and args.connector != "qformer":
            raise ValueError(
                "--model representation: expected --connector qformer, found "
                f"{args.connector}. Only the Q-Former has this stage; train the "
                "generative one."
            )

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> List[torch.optim.Optimizer]:
        """One optimizer over what is trained; no weight decay on vectors.

        Weights of an earlier stage (--init_param) are loaded here, the first place
        where ESPnet hands over the built model: its own loader, called later, reads
        pickles and keeps silent about weights that are missing.
        """
        if args.init_param:
            if not (args.resume and can_be_resumed(Path(args.output_dir))):
                load_init_params(model, args.init_param, args.ignore_init_mismatch)
            args.initialized_from, args.init_param = args.init_param, []
        if args.sharded_ddp:
            return super().build_optimizers(args, model)
        if args.optim not in optim_classes:
            raise ValueError(
                f"--optim: expected one of {', '.join(optim_classes)}, found "
                f"{args.optim!r}."
            )
        trained = [p for p in model.parameters() if p.requires_grad]
        groups: List[Dict[str, Any]] = [
            {"params": [p for p in trained if p.dim() > 1]},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        logging.info(
            f"training {sum(p.numel() for p in trained):,} weights, {frozen:,} more "
            "are carried along untrained; the frozen encoder and language model are "
            "not counted"
        )
        settings = dict(args.optim_conf)
        if args.optim in ("adam", "adamw") and "foreach" not in settings:
            # A sixth of the time on a CPU: 5 % of a bfloat16 step at B=16.
            settings.setdefault("fused", True)
        return [optim_classes[args.optim](groups, **settings)]

    # ------------------------------------------------------------------ models

    @classmethod
    @typechecked
    def build_model(cls, args: argparse.Namespace) -> SLITModel:
        """Build the model of one stage; record or check the frozen parts' identities.

        Args:
            args: the options; identities that are None are filled in.

        Returns:
            The model; its frozen parts are not in its parameters.

        Raises:
            IdentityError: a frozen part is not the one recorded in the options.
            ValueError: options that do not fit together.
        """
        cls._check_parts(args)
        # Here and not earlier: ESPnet has set up logging, and config.yaml is written
        # after, so that both say what was chosen.
        if "precision" in args.model_conf:
            args.model_conf["precision"] = choose_precision(
                args.model_conf["precision"],
                "cuda" if getattr(args, "ngpu", 0) else "cpu",
                option="model_conf.precision",
            )
        # Loading frozen parts draws random numbers; the trained parts must start
        # alike whether frames are cached or computed.
        with torch.random.fork_rng(devices=[]):
            audio_encoder, facts = cls._audio_side(args)
        return cls._assemble(args, audio_encoder, facts)

    @classmethod
    def _assemble(
        cls,
        args: argparse.Namespace,
        audio_encoder: Optional[torch.nn.Module],
        facts: Dict[str, Any],
    ) -> SLITModel:
        """The model around an encoder that is built, or around cached features."""
        parts: Dict[str, Any] = {}
        _check_place(args, "language_model_identity")
        _check_place(args, "qformer_tokenizer_identity")
        if args.language_model:
            from espnet2_slit.model.load_language_model import load_language_model

            with torch.random.fork_rng(devices=[]):
                parts["language_model"] = load_language_model(
                    args.language_model, **args.language_model_conf
                )
            parts["instructed"] = args.model == "instruction"
            identity = parts["language_model"].identity()
            _record(args, "language_model_identity", identity)
        if args.connector == "qformer":
            tokenizer = load_qformer_tokenizer(args.qformer_tokenizer)
            identity = qformer_tokenizer_identity(tokenizer)
            _record(args, "qformer_tokenizer_identity", identity)
            qformer = parts["qformer"] = cls.build_qformer(args, facts, tokenizer)
        else:
            parts["connector"] = build_frame_stack(
                args.connector, facts["width"], **args.connector_conf
            )
            parts["qformer"] = qformer = None
        # a printed configuration holds defaults, of which the stage decides some
        conf = {**args.model_conf, "audio_encoder": audio_encoder, **parts}
        conf.pop("extract_feats_in_collect_stats", None)  # is ESPnet's
        model = model_choices.get_class(args.model)(**conf)
        if args.qformer_init and not args.init_param and qformer is not None:
            from espnet2_slit.model.qformer_weights import load_pretrained_qformer

            load_pretrained_qformer(
                qformer,
                args.qformer_init,
                heads=getattr(model, "heads", None),
                **args.qformer_init_conf,
            )
        return model

    @classmethod
    def build_qformer(
        cls, args: argparse.Namespace, facts: Dict[str, Any], tokenizer: Any
    ) -> QFormer:
        """The Q-Former of one stage: frames' facts and tokenizer's ids filled in.

        Args:
            args: the options.
            facts: of the audio encoder: width, frames_per_second; frames_per_window
                and max_windows unless qformer_conf has them.
            tokenizer: of `load_qformer_tokenizer`.

        Returns:
            The Q-Former with the branches that the stage needs.

        Raises:
            ValueError: the preprocessor makes texts longer than the Q-Former knows.
        """
        if args.model == "representation":
            text_branch = language_head = True
        else:
            language_head = False
            text_branch = (
                _setting(
                    SLITPreprocessor, args.preprocessor_conf, "qformer_instruction"
                )
                if args.model == "instruction"
                else _setting(PromptedModel, args.model_conf, "carry_text_branch")
            )
        windows = {
            k: facts[k] for k in ("max_windows", "frames_per_window") if k in facts
        }
        # kept in the options, so that config.yaml is complete without the encoder
        conf = args.qformer_conf = {**windows, **args.qformer_conf}
        limits = {
            "representation": ["max_text_length"],
            "instruction": ["max_prompt_length"] if text_branch else [],
        }
        for name in limits.get(args.model, []):
            length = _setting(SLITPreprocessor, args.preprocessor_conf, name)
            known = _setting(QFormer, conf, "max_text_length")
            if length > known:
                raise ValueError(
                    f"preprocessor_conf.{name}: expected at most {known}, the "
                    f"positions of the Q-Former, found {length}. Lower it, or raise "
                    "qformer_conf.max_text_length (from the first stage on)."
                )
        return QFormer(
            encoder_width=facts["width"],
            vocab_size=len(tokenizer),
            pad_id=tokenizer.pad_token_id,
            bos_id=tokenizer.bos_token_id,
            text_branch=text_branch,
            language_head=language_head,
            frames_per_second=facts.get("frames_per_second", 0.0),
            **conf,
        )

    @classmethod
    def _audio_side(
        cls, args: argparse.Namespace
    ) -> Tuple[Optional[torch.nn.Module], Dict[str, Any]]:
        """The audio encoder or None, and the facts about its frames."""
        from espnet2_slit.common.identity import fingerprint

        if not args.features:
            if not args.audio_encoder:
                raise ValueError(
                    "expected --features or --audio_encoder, found neither. Give the "
                    "feats.json of a cache, or the kind of encoder and "
                    "--audio_encoder_conf path=..."
                )
            from espnet2_slit.model.audio_encoder import build_audio_encoder

            _check_place(args, "audio_encoder_identity")
            cls._choose_encoder_precision(args, args.audio_encoder_identity)
            encoder = build_audio_encoder(args.audio_encoder, **args.audio_encoder_conf)
            _record(args, "audio_encoder_identity", encoder.identity())
            return encoder, _facts(encoder)
        # What is configured beside the cache must be what made it.
        known = {"kind": args.audio_encoder} if args.audio_encoder else {}
        path = args.audio_encoder_conf.get("path")
        if path and Path(path).exists():
            known["fingerprint"] = fingerprint(path)
        for name in ("layer", "fill_windows"):
            if name in args.audio_encoder_conf:
                known[name] = args.audio_encoder_conf[name]
        if args.audio_encoder_conf.get("precision", "auto") != "auto":
            known["precision"] = args.audio_encoder_conf["precision"]
        content = check_features(args.features, known)
        for option in (
            args.train_data_path_and_name_and_type,
            args.valid_data_path_and_name_and_type,
        ):  # the validation set's cache must come from the same encoder
            for scp, name, _ in option:
                other = Path(scp).parent / "feats.json"
                if name == "feats" and other.is_file():
                    check_features(other, content["identity"])
        _record(args, "audio_encoder_identity", content["identity"])
        cls._choose_encoder_precision(args, content["identity"])
        # so that config.yaml can build the encoder where there is no cache
        if not args.audio_encoder:
            args.audio_encoder = content["identity"]["kind"]
        if not path:
            args.audio_encoder_conf = {
                **args.audio_encoder_conf,
                "path": content["identity"]["path"],
            }
        return None, content

    @classmethod
    def _choose_encoder_precision(
        cls, args: argparse.Namespace, made_by: Optional[Dict[str, Any]]
    ) -> None:
        """Write into the options what `precision: auto` of the encoder is.

        Frames that exist decide, whatever this machine would choose: a cache is of use
        on other machines, too.
        """
        if args.audio_encoder_conf.get("precision") == "auto":
            device = "cuda" if getattr(args, "ngpu", 0) else "cpu"
            made_in = (made_by or {}).get("precision")
            chosen = made_in or choose_precision("auto", device)
            args.audio_encoder_conf = {**args.audio_encoder_conf, "precision": chosen}

    @classmethod
    @typechecked
    def build_model_from_file(
        cls,
        config_file: Optional[Union[Path, str]] = None,
        model_file: Optional[Union[Path, str]] = None,
        device: str = "cpu",
        overrides: Optional[Dict[str, Any]] = None,
        audio_encoder: Optional[Any] = None,
        with_audio_encoder: bool = True,
    ) -> Tuple[AbsESPnetModel, argparse.Namespace]:
        """Build a trained model, in eval mode.

        Args:
            config_file: config.yaml of the training; default: beside `model_file`.
            model_file: weights; None leaves the model untrained.
            device: "cpu", "cuda" or "cuda:N".
            overrides: options that replace those of the config, for example paths
                after a move; dicts replace single keys. Identities are still checked.
            audio_encoder: one that is built already, to be shared between models.
            with_audio_encoder: False: the model only takes cached features.

        Returns:
            The model and its options.

        Raises:
            WeightsError: weights are missing, unexpected or misshapen.
            IdentityError: a frozen part is not the one of the training.
        """
        if config_file is None:
            if model_file is None:
                raise ValueError("expected config_file or model_file, found neither.")
            config_file = Path(model_file).parent / "config.yaml"
        args = cls._options_from_file(Path(config_file), overrides or {})
        if audio_encoder is not None:
            _record(args, "audio_encoder_identity", audio_encoder.identity())
            model = cls._assemble(args, audio_encoder, _facts(audio_encoder))
        elif with_audio_encoder:
            model = cls.build_model(args)
        else:
            model = cls._assemble(args, None, args.audio_encoder_identity)
        if model_file is not None:
            load_strictly(model, read_weights(model_file), str(model_file))
        return model.to(device).eval(), args

    @classmethod
    def _options_from_file(
        cls, config_file: Path, overrides: Dict[str, Any]
    ) -> argparse.Namespace:
        """Options of a training, without what only its start needed."""
        if not config_file.is_file():
            raise FileNotFoundError(
                f"{config_file}: expected the config.yaml of a training, found "
                "nothing. It lies in the experiment folder, beside the model file."
            )
        options = read_yaml(config_file, "Give the one that training wrote.")
        needed = ("model", "model_conf", "qformer_conf", *IDENTITIES)
        absent = [name for name in needed if name not in options]
        if absent:
            raise ValueError(
                f"{config_file}: expected the config.yaml of a SLIT training, found "
                f"no {', '.join(absent)}. Give the one that training wrote (not a "
                "file of conf/)."
            )
        unknown = sorted(set(overrides) - set(options))
        if unknown:
            raise ValueError(
                f"overrides: expected options of {config_file}, found "
                f"{', '.join(unknown)}."
            )
        for name, value in overrides.items():
            if isinstance(value, dict) and isinstance(options[name], dict):
                value = {**options[name], **value}
            options[name] = value
        # of trainings before there were others
        options = {"connector": "qformer", "connector_conf": {}, **options}
        # the cache is of the training set; weights come from the model file
        options.update(features="", qformer_init="", init_param=[])
        args = argparse.Namespace(**options)
        for name, option in IDENTITIES.items():
            if option.partition(".")[0] in overrides:
                _forget_place(args, name)
        return args


def _setting(owner: Any, conf: Dict[str, Any], name: str) -> Any:
    """A configured keyword, or its default where the constructor states it."""
    return conf.get(name, inspect.signature(owner).parameters[name].default)


def _fingerprints(init_param: List[str]) -> List[str]:
    """What the weights of --init_param are; missing ones are an error elsewhere."""
    from espnet2_slit.common.identity import fingerprint

    paths = [spec.partition(":")[0] for spec in init_param]
    return [fingerprint(path) for path in paths if Path(path).exists()]


def _facts(encoder: torch.nn.Module) -> Dict[str, Any]:
    """What the Q-Former needs to know of an encoder."""
    names = ("width", "frames_per_second", "max_windows", "frames_per_window")
    return {name: getattr(encoder, name) for name in names}


def _configured(args: argparse.Namespace, name: str) -> str:
    """What the options name as the part that an identity belongs to; "" if nothing."""
    option, _, key = IDENTITIES[name].partition(".")
    value = getattr(args, option)
    return str((value.get(key) if key else value) or "")


def _forget_place(args: argparse.Namespace, name: str) -> None:
    """The user says anew where a part is, which may now be on the Hub."""
    identity = getattr(args, name)
    if identity:
        kept = {key: value for key, value in identity.items() if key != "local"}
        setattr(args, name, kept)


def _check_place(args: argparse.Namespace, name: str) -> None:
    """A frozen part that was a file when it was recorded is still one.

    Raises:
        IdentityError: it is not there; transformers would ask the Hub for its name.
    """
    place = _configured(args, name)
    local = (getattr(args, name) or {}).get("local")
    if local and place and not Path(place).exists():
        raise IdentityError(
            f"{IDENTITIES[name]}: expected a file or folder at {place}, where there "
            "was one when this model was trained, found nothing. Put it back, or give "
            "its place now."
        )


def _record(args: argparse.Namespace, name: str, found: Dict[str, Any]) -> None:
    """Note a frozen part's identity in the options, or compare it with the noted one.

    Raises:
        IdentityError: they differ; the message names the option to correct.
    """
    expected = getattr(args, name, None)
    if expected is None:
        if Path(_configured(args, name) or "").exists():
            found = {**found, "local": True}  # once moved, it is not to be downloaded
        setattr(args, name, found)
        return
    differences = identity_differences(expected, found)
    if differences:
        part = name.removesuffix("_identity").replace("_", " ")
        raise IdentityError(
            f"the {part} is not the one this model was trained with: "
            f"{'; '.join(differences)}. It was {expected.get('path', 'unnamed')} then; "
            f"correct {IDENTITIES[name]}, or train anew in another folder without "
            f"{name} in the configuration."
        )
