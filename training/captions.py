"""Training of text to image on any captions: a new small generator, or a finished one that is fine-tuned."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer as Words
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bitdance_edge.model import TextToImage, Tokenizer
from bitdance_edge.model.prompt import PromptTokenizer
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.image_set import ImageSet, TrainingImages
from bitdance_edge.training.recipes import FinetuneRecipe, TextRecipe
from bitdance_edge.training.streamed import StreamedImages
from bitdance_edge.training.text_generator import text_config, text_loss
from bitdance_edge.training.trainer import Objective
from bitdance_edge.training.vocabulary import word_tokenizer

SCORE_BATCH = 32
SCORE_SEED = 0
MOST_WORDS = 32_768  # of a new vocabulary; rarer words are unknown to the model
CAPTIONS_READ = 1_000_000  # to find them


class CaptionObjective(Objective):
    """Velocity error of the head under each image's own caption; prompts are tokenized batch by batch."""

    score_name = "loss"

    def __init__(self, model: TextToImage, prompts: PromptTokenizer, recipe: TextRecipe | FinetuneRecipe) -> None:
        super().__init__()
        self.model, self.prompts, self.recipe = model, prompts, recipe
        self.dropout = recipe.prompt_dropout if isinstance(recipe, TextRecipe) else recipe.condition_dropout
        self.model.tokenizer.requires_grad_(False)

    def inputs(self, batch: ImageSet) -> tuple[Tensor, Tensor]:
        """Return images and prompts int64 ``[B, 1 + T]``: the length of each, then its ids, padded on the left.

        Some prompts are the unconditional one, drawn from torch's global generator. The last words of a caption that is
        longer than ``max_prompt`` tokens are cut off.
        """
        dropped = (torch.rand(len(batch)) < self.dropout).tolist()
        rows = [self._ids("" if drop else caption, drop) for caption, drop in zip(batch.captions, dropped, strict=True)]
        ids = pad_sequence(rows, batch_first=True, padding_side="left")
        return batch.images, torch.cat([torch.tensor([[len(row)] for row in rows]), ids], dim=1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of images and prompts as ``inputs`` gives them."""
        lengths, ids = labels[:, 0], labels[:, 1:]
        return text_loss(self.model, self.recipe, images, ids, ids.shape[1] - lengths)

    @torch.no_grad()
    def score(self, held_out: ImageSet) -> float:
        """Return the mean loss of held-out images, always with the same draws."""
        device = next(self.parameters()).device
        total = 0.0
        with torch.random.fork_rng():
            torch.manual_seed(SCORE_SEED)
            for rows in torch.arange(len(held_out)).split(SCORE_BATCH):
                images, prompts = self.inputs(held_out[rows.numpy()])
                total += len(rows) * self(images.to(device), prompts.to(device)).item()
        return total / len(held_out)

    def _ids(self, caption: str, unconditional: bool) -> Tensor:
        size, most = self.recipe.size, self.model.config.max_prompt
        if unconditional:
            return torch.tensor(self.prompts.unconditional(size, size))
        ids = self.prompts.conditional(caption, size, size)
        while (excess := len(ids) - self.model.config.prompt_tokens) > 0:
            words = caption.split()
            if len(words) <= 1:
                raise TrainingError(f"caption {caption[:40]!r} has more than the {most} tokens of a prompt; shorten it")
            caption = " ".join(words[: max(1, len(words) - max(1, excess // 4))])
            ids = self.prompts.conditional(caption, size, size)
        return torch.tensor(ids)


def new_text_objective(
    recipe: TextRecipe, tokenizer: Tokenizer, images: TrainingImages
) -> tuple[CaptionObjective, Words]:
    """Make a generator of the recipe's sizes whose vocabulary is the captions' most frequent words."""
    counts: Counter[str] = Counter()
    example = ""
    for caption in islice(all_captions(images), CAPTIONS_READ):
        counts.update(caption.lower().split())
        example = example or caption
    side = recipe.size // tokenizer.config.downsampling
    words = word_tokenizer((word for word, _ in counts.most_common(MOST_WORDS)), recipe.tokens_per_step, [side])
    model = TextToImage(text_config(recipe, tokenizer, words.get_vocab_size(), example))
    model.initialize()
    model.tokenizer.load_state_dict(tokenizer.state_dict())
    return CaptionObjective(model, PromptTokenizer(Path("tokenizer.json"), words, model.config), recipe), words


def all_captions(images: TrainingImages) -> Iterator[str]:
    """Yield the captions of all images, without decoding these."""
    if isinstance(images, StreamedImages):
        return (images.records.caption(row) for row in images.rows.tolist())
    return iter(_in_memory(images))


def _in_memory(images: TrainingImages) -> Iterable[str]:
    assert isinstance(images, ImageSet)
    return images.captions
