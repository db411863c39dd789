"""SLITTask: the models of the three training stages, built from options.

Owns which parts a configuration asks for and the optimizer's parameters. The parts are
in their own modules; training, launching and checkpoints are ESPnet's.
"""

import argparse
import logging
from pathlib import Path
from typing import Any, Callable, Collection, Dict, List, Optional, Tuple, Union

import numpy as np
import torch
from typeguard import typechecked

from espnet2_slit.common import compat
from espnet2_slit.common.identity import fingerprint
from espnet2_slit.common.precision import choose_precision
from espnet2_slit.common.weights import load_strictly, read_weights
from espnet2_slit.data.feature_cache import check_features
from espnet2_slit.data.indexed_lines import by_index
from espnet2_slit.data.preprocessor import (
    SLITPreprocessor,
    load_qformer_tokenizer,
    qformer_tokenizer_identity,
)
from espnet2_slit.model.espnet_model import (
    PromptedModel,
    RepresentationModel,
    SLITModel,
)
from espnet2_slit.model.frame_stack import build_frame_stack
from espnet2_slit.model.qformer import QFormer
from espnet2_slit.task.identities import (
    check_place,
    check_run_so_far,
    fingerprints,
    record,
)
from espnet2_slit.task.options import (
    add_options,
    check_data_names,
    find_data,
    read_options,
    setting,
)
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
    IteratorOptions,
    optim_classes,
    scheduler_classes,
)
from espnet2.train.abs_espnet_model import AbsESPnetModel  # noqa: E402
from espnet2.train.class_choices import ClassChoices  # noqa: E402
from espnet2.train.collate_fn import CommonCollateFn  # noqa: E402
from espnet2.train.distributed_utils import DistributedOption  # noqa: E402
from espnet2.train.trainer import Trainer  # noqa: E402

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


class SLITTask(AbsTask):
    """Audio-language training: representation, generative, instruction."""

    num_optimizers: int = 1
    class_choices_list = [model_choices]  # --model and --model_conf
    trainer = SLITTrainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Options beside ESPnet's."""
        group = parser.add_argument_group(description="Task related")
        for class_choices in cls.class_choices_list:
            class_choices.add_arguments(group)
        add_options(parser)

    # ------------------------------------------------------------------ data

    @classmethod
    def build_iter_options(
        cls,
        args: argparse.Namespace,
        distributed_option: DistributedOption,
        mode: str,
    ) -> IteratorOptions:
        """ESPnet's, with texts and frames looked up on disk and not in dictionaries."""
        options = super().build_iter_options(args, distributed_option, mode)
        options.data_path_and_name_and_type = [
            by_index(*row) for row in options.data_path_and_name_and_type
        ]
        return options

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
        """`text` to train on; which of speech and feats, see `check_data_names`."""
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
    def main_worker(cls, args: argparse.Namespace) -> None:
        """Train (or collect statistics) in this process."""
        find_data(args)
        check_data_names(args)
        cls._check_parts(args)
        cls.trainer = Trainer if cls._uses_deepspeed(args) else SLITTrainer
        if args.collect_stats:
            args.model_conf.setdefault("extract_feats_in_collect_stats", False)
        args.init_fingerprints = fingerprints(args.init_param)
        data = args.train_data_path_and_name_and_type
        texts = [path for path, name, _ in data if name in ("text", "instruction")]
        args.text_fingerprints = fingerprints(texts)
        previous = read_training_config(Path(args.output_dir)) if args.resume else None
        if previous is not None:
            check_run_so_far(args, previous)
        super().main_worker(args)

    @classmethod
    def _check_parts(cls, args: argparse.Namespace) -> None:
        """Options that exclude or need each other.

        Raises:
            ValueError: says which, and what to give.
        """
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
        check_place(args, "language_model_identity")
        check_place(args, "qformer_tokenizer_identity")
        if args.language_model:
            from espnet2_slit.model.load_language_model import load_language_model

            with torch.random.fork_rng(devices=[]):
                parts["language_model"] = load_language_model(
                    args.language_model, **args.language_model_conf
                )
            parts["instructed"] = args.model == "instruction"
            identity = parts["language_model"].identity()
            record(args, "language_model_identity", identity)
        if args.connector == "qformer":
            tokenizer = load_qformer_tokenizer(args.qformer_tokenizer)
            identity = qformer_tokenizer_identity(tokenizer)
            record(args, "qformer_tokenizer_identity", identity)
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
                setting(SLITPreprocessor, args.preprocessor_conf, "qformer_instruction")
                if args.model == "instruction"
                else setting(PromptedModel, args.model_conf, "carry_text_branch")
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
            length = setting(SLITPreprocessor, args.preprocessor_conf, name)
            known = setting(QFormer, conf, "max_text_length")
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
        if not args.features:
            if not args.audio_encoder:
                raise ValueError(
                    "expected --features or --audio_encoder, found neither. Give the "
                    "feats.json of a cache, or the kind of encoder and "
                    "--audio_encoder_conf path=..."
                )
            from espnet2_slit.model.audio_encoder import build_audio_encoder

            check_place(args, "audio_encoder_identity")
            cls._choose_encoder_precision(args, args.audio_encoder_identity)
            encoder = build_audio_encoder(args.audio_encoder, **args.audio_encoder_conf)
            record(args, "audio_encoder_identity", encoder.identity())
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
        record(args, "audio_encoder_identity", content["identity"])
        cls._choose_encoder_precision(args, content["identity"])
        # so that config.yaml can build the encoder where there is no cache
        if not args.audio_encoder:
            args.audio_encoder = content["identity"]["kind"]
        if not path:
            made_by = content["identity"]
            made = {n: made_by[n] for n in ("path", "precision") if n in made_by}
            args.audio_encoder_conf = {**made, **args.audio_encoder_conf}
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
        args = read_options(Path(config_file), overrides or {})
        if audio_encoder is not None:
            record(args, "audio_encoder_identity", audio_encoder.identity())
            model = cls._assemble(args, audio_encoder, _facts(audio_encoder))
        elif with_audio_encoder:
            model = cls.build_model(args)
        else:
            model = cls._assemble(args, None, args.audio_encoder_identity)
        if model_file is not None:
            load_strictly(model, read_weights(model_file), str(model_file))
        return model.to(device).eval(), args


def _facts(encoder: torch.nn.Module) -> Dict[str, Any]:
    """What the Q-Former needs to know of an encoder."""
    names = ("width", "frames_per_second", "max_windows", "frames_per_window")
    return {name: getattr(encoder, name) for name in names}
