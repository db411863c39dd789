"""Peers of `stage1_step.py`: the same three losses by others, with our weights.

`Transformers` is how one would first write them on `Blip2QFormerModel`; `Lavis` runs
LAVIS' own forward from the user's checkout. Both take the batch that
`stage1_step.make_batch` makes and return their three losses.
"""

import sys
import tempfile
import types
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_slit.model.espnet_model import RepresentationModel

VOCAB, BOS, CLS, SEP, PAD = 30523, 30522, 101, 102, 0
MAX_TEXT = 32  # LAVIS pads every caption to this


# -- the same losses, written plainly on transformers ----------------------------------


class Transformers(nn.Module):
    """Blip2QFormerModel and the three losses as one would first write them."""

    def __init__(self, args, ours: RepresentationModel):
        super().__init__()
        import transformers

        config = transformers.Blip2QFormerConfig(
            vocab_size=VOCAB,
            num_hidden_layers=args.layers,
            encoder_hidden_size=args.width,
            use_qformer_text_input=True,
            hidden_dropout_prob=args.dropout,
            attention_probs_dropout_prob=args.dropout,
            attn_implementation="sdpa",
        )
        self.qformer = transformers.Blip2QFormerModel(config)
        self.query_tokens = nn.Parameter(torch.zeros(1, 32, 768))
        self.word = nn.Embedding(VOCAB, 768, padding_idx=PAD)
        self.position = nn.Embedding(512, 768)
        self.frame_norm = nn.LayerNorm(args.width)
        self.transform = nn.Linear(768, 768)
        self.transform_norm = nn.LayerNorm(768, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(VOCAB))
        self.audio_projection = nn.Linear(768, 256)
        self.text_projection = nn.Linear(768, 256)
        self.matching_head = nn.Linear(768, 2)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.copy(ours)

    @torch.no_grad()
    def copy(self, ours: RepresentationModel) -> None:
        from safetensors.torch import load_file

        from espnet2_slit.model.qformer_weights import export_to_transformers

        with tempfile.TemporaryDirectory() as folder:
            export_to_transformers(ours.qformer, folder)
            state = load_file(f"{folder}/model.safetensors")
        inner = {n: t for n, t in state.items() if not n.startswith("embeddings.")}
        for last in ("weight", "bias"):
            inner[f"layernorm.{last}"] = state[f"embeddings.layernorm.{last}"]
        self.qformer.load_state_dict(inner)
        qformer, heads = ours.qformer, ours.heads
        self.query_tokens.copy_(qformer.query_tokens[None])
        self.bias.copy_(qformer.language_head.bias)
        for mine, theirs in (
            (self.word, qformer.embedding.word),
            (self.position, qformer.embedding.position),
            (self.frame_norm, qformer.frame_norm),
            (self.transform, qformer.language_head.transform),
            (self.transform_norm, qformer.language_head.norm),
            (self.audio_projection, heads.audio_projection),
            (self.text_projection, heads.text_projection),
            (self.matching_head, heads.matching_head),
        ):
            mine.load_state_dict(theirs.state_dict())

    def embed(self, ids: Tensor) -> Tensor:
        return self.word(ids) + self.position.weight[: ids.size(1)]

    def forward(self, batch: dict) -> dict[str, Tensor]:
        text, count = batch["qformer_text"], len(batch["qformer_text"])
        mask = (text != PAD).long()
        frames = self.frame_norm(batch["feats"])
        tokens = self.query_tokens.expand(count, -1, -1)
        num_queries = tokens.size(1)
        queries = self.qformer(
            query_embeds=tokens, encoder_hidden_states=frames
        ).last_hidden_state
        summary = self.qformer(
            query_embeds=self.embed(text), query_length=0, attention_mask=mask
        ).last_hidden_state[:, 0]
        audio = F.normalize(self.audio_projection(queries).float(), dim=-1)
        summary = F.normalize(self.text_projection(summary).float(), dim=-1)
        scores = (audio.flatten(0, 1) @ summary.t()).view(count, -1, count)
        scores = scores.max(1).values / self.temperature
        labels = torch.arange(count, device=text.device)
        contrast = (
            F.cross_entropy(scores, labels, label_smoothing=0.1)
            + F.cross_entropy(scores.t(), labels, label_smoothing=0.1)
        ) / 2
        own = torch.eye(count, dtype=torch.bool, device=text.device)
        weights = scores.detach().masked_fill(own, -1e4)
        negative_text = torch.multinomial(weights.softmax(1), 1)[:, 0]
        negative_audio = torch.multinomial(weights.t().softmax(1), 1)[:, 0]

        pair_text = torch.cat((text, text, text[negative_text]))
        pair_mask = torch.cat((mask, mask, mask[negative_text]))
        pairs = self.qformer(
            query_embeds=torch.cat(
                (self.query_tokens.expand(3 * count, -1, -1), self.embed(pair_text)), 1
            ),
            query_length=num_queries,
            attention_mask=F.pad(pair_mask, (num_queries, 0), value=1),
            encoder_hidden_states=torch.cat((frames, frames[negative_audio], frames)),
        ).last_hidden_state[:, :num_queries]
        match = self.matching_head(pairs).float().mean(1)
        match_labels = torch.cat((torch.ones_like(labels), labels * 0, labels * 0))

        # no cache in this class: queries and text in one pass, queries blind to text
        inputs = text.clone()
        inputs[:, 0] = BOS
        length = text.size(1)
        see = torch.ones(num_queries + length, num_queries + length, device=text.device)
        see = see.tril()
        see[:num_queries, :num_queries] = 1
        see = see * F.pad(mask, (num_queries, 0), value=1)[:, None]
        hidden = self.qformer(
            query_embeds=torch.cat((tokens, self.embed(inputs)), 1),
            query_length=num_queries,
            attention_mask=see[:, None].bool(),
            encoder_hidden_states=frames,
        ).last_hidden_state[:, num_queries:]
        hidden = self.transform_norm(F.gelu(self.transform(hidden)))
        logits = F.linear(hidden, self.word.weight, self.bias)[:, :-1]
        targets = text[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        return {
            "contrastive": contrast,
            "matching": F.cross_entropy(match, match_labels),
            "generation": F.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten(), label_smoothing=0.1
            ),
        }


# -- LAVIS -----------------------------------------------------------------------------


def load_lavis(checkout: Path) -> type[nn.Module]:
    """LAVIS' `Blip2Qformer` from the user's checkout, with its imports replaced.

    Its files cannot be imported as they are without 40 packages and transformers
    4.33. Only what they import is replaced; every line that computes is theirs.
    """
    import transformers.pytorch_utils

    class Pretrained(nn.Module):
        """What their code uses of PreTrainedModel."""

        def __init__(self, config, *_, **__):
            super().__init__()
            self.config = config

        def init_weights(self):
            self.apply(self._init_weights)

        def get_head_mask(self, _, layers):
            return [None] * layers

        def invert_attention_mask(self, mask):
            mask = mask[:, None, None, :].to(self.dtype)
            return (1.0 - mask) * torch.finfo(self.dtype).min

        @property
        def dtype(self):
            return next(self.parameters()).dtype

        @property
        def device(self):
            return next(self.parameters()).device

    def module(name: str, **content) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__dict__.update(content)
        sys.modules[name] = made
        return made

    def run(name: str, path: Path, replacements: dict[str, str]) -> types.ModuleType:
        source = path.read_text()
        for old, new in replacements.items():
            source = source.replace(old, new)
        made = module(name)
        exec(compile(source, str(path), "exec"), made.__dict__)  # noqa: S102
        return made

    models = checkout / "lavis" / "models"
    module(
        "lavis_shim",
        PreTrainedModel=Pretrained,
        apply_chunking_to_forward=transformers.pytorch_utils.apply_chunking_to_forward,
        find_pruneable_heads_and_indices=None,
        prune_linear_layer=None,
    )
    names = "lavis", "lavis.common", "lavis.models", "lavis.models.blip2_models"
    for name in (*names, "lavis.models.blip_models"):
        module(name, __path__=[])
    run(
        "lavis.models.blip2_models.Qformer",
        models / "blip2_models" / "Qformer.py",
        {
            "from transformers.modeling_utils import": "from lavis_shim import",
            "from transformers.file_utils import": "from transformers.utils import",
        },
    )
    register = types.SimpleNamespace(register_model=lambda name: lambda cls: cls)
    module("lavis.common.registry", registry=register)

    @torch.no_grad()
    def concat_all_gather(x: Tensor) -> Tensor:  # on one rank a detached copy
        return torch.cat([x], dim=0)

    module(
        "lavis.models.base_model",
        all_gather_with_grad=lambda x: x,
        concat_all_gather=concat_all_gather,
    )
    module(
        "lavis.models.blip2_models.blip2",
        Blip2Base=nn.Module,
        compute_sim_matrix=None,
        disabled_train=None,
    )
    run(
        "lavis.models.blip_models.blip_outputs",
        models / "blip_models" / "blip_outputs.py",
        {},
    )
    made = run(
        "lavis.models.blip2_models.blip2_qformer",
        models / "blip2_models" / "blip2_qformer.py",
        {"from torch.cuda.amp import": "from torch.amp import"},
    )
    return made.Blip2Qformer


class Lavis(nn.Module):
    """LAVIS' own forward on given features and token ids, our weights in it."""

    def __init__(self, args, ours: RepresentationModel):
        super().__init__()
        if not dist.is_initialized():
            # their forward asks for its rank without asking whether there is one
            store = f"file://{tempfile.mkdtemp()}/store"
            dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        theirs = load_lavis(Path(args.lavis).expanduser())
        qformer_file = sys.modules["lavis.models.blip2_models.Qformer"]
        # transformers' BertConfig changes between versions; these are all they read
        config = types.SimpleNamespace(
            vocab_size=VOCAB,
            hidden_size=768,
            num_hidden_layers=args.layers,
            num_attention_heads=12,
            intermediate_size=3072,
            hidden_act="gelu",
            hidden_dropout_prob=args.dropout,
            attention_probs_dropout_prob=args.dropout,
            max_position_embeddings=512,
            initializer_range=0.02,
            layer_norm_eps=1e-12,
            pad_token_id=PAD,
            position_embedding_type="absolute",
            chunk_size_feed_forward=0,
            gradient_checkpointing=False,
            is_decoder=False,
            use_cache=True,
            output_attentions=False,
            output_hidden_states=False,
            use_return_dict=True,
            add_cross_attention=True,
            cross_attention_freq=2,
            encoder_width=args.width,
            query_length=32,
        )
        model = theirs.__new__(theirs)
        nn.Module.__init__(model)
        model.visual_encoder = nn.Identity()
        model.ln_vision = nn.LayerNorm(args.width)
        model.Qformer = qformer_file.BertLMHeadModel(config)
        predictions = model.Qformer.cls.predictions
        predictions.decoder.weight = (
            model.Qformer.bert.embeddings.word_embeddings.weight
        )
        model.query_tokens = nn.Parameter(torch.zeros(1, 32, 768))
        model.vision_proj = nn.Linear(768, 256)
        model.text_proj = nn.Linear(768, 256)
        model.itm_head = nn.Linear(768, 2)
        model.temp = nn.Parameter(torch.tensor(0.07))
        model.max_txt_len = MAX_TEXT
        self.model = model
        self.copy(ours)

    @torch.no_grad()
    def copy(self, ours: RepresentationModel) -> None:
        """Ours into theirs, found by the names under which we would load theirs."""
        from espnet2_slit.model.qformer_weights import our_names

        state = self.model.state_dict()
        wanted = ours.qformer.state_dict() | {
            f"heads.{n}": t for n, t in ours.heads.state_dict().items()
        }
        _, renamed = our_names(state)
        for name, tensor in renamed.items():
            if "query_key_value" in name:
                continue
            tensor.copy_(wanted[name].view_as(tensor))  # shares memory with theirs
        for i, layer in enumerate(self.model.Qformer.bert.encoder.layer):
            attention = layer.attention.self
            for last in ("weight", "bias"):
                joint = wanted[f"layers.{i}.self_attention.query_key_value.{last}"]
                for part, chunk in zip(
                    ("query", "key", "value"), joint.chunk(3), strict=True
                ):
                    getattr(getattr(attention, part), last).data.copy_(chunk)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        class Tokens(types.SimpleNamespace):
            def to(self, _):
                return self

        class Tokenizer:
            bos_token_id, pad_token_id = BOS, PAD

            def __call__(self, text, **_):
                return Tokens(input_ids=text, attention_mask=(text != PAD).long())

        self.model.tokenizer = Tokenizer()
        out = self.model({"image": batch["feats"], "text_input": batch["qformer_text"]})
        return {
            "contrastive": out.loss_itc,
            "matching": out.loss_itm,
            "generation": out.loss_lm,
        }
