"""What ledgers are compared with: plain training, and one step after another as the papers write them down."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.tiny import tiny_neox

KINDS = ("living/animal", "living/plant", "place")


class Positions(nn.Module):
    """Everything that splits differently: shared positions, norm, tied weights, a bare parameter, a convolution."""

    def __init__(self, width=6, vocab=11, length=5):
        super().__init__()
        self.words = nn.Embedding(vocab, width, padding_idx=0)
        self.places = nn.Embedding(length, width)
        self.convolution = nn.Conv1d(width, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(2 * width, width)
        self.gain = nn.Parameter(torch.ones(width))
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1])[None])
        x = x + self.convolution(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.outer(torch.tanh(self.inner(self.norm(x)))) * self.gain
        return self.head(x)


def positions(dtype=torch.float64, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Positions().to(dtype)


def neox(dtype="float64", **options):
    return tiny_neox(width=8, layers=1, vocab_size=32, context=16, dtype=dtype, **options).train()


def losses_of(model, ids):
    """Mean next-token cross-entropy of each example."""
    output = model(ids)
    logits = getattr(output, "logits", output)[:, :-1]
    values = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return values.reshape(len(ids), -1).mean(1)


def batches(num_steps, *, vocab=11, examples=5, length=5, kinds=KINDS, seed=1):
    """Ids and labels; labels in no order, and now and then a kind is absent."""
    chance = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(num_steps):
        ids = torch.randint(0, vocab, (examples, length), generator=chance)
        labels = [kinds[i] for i in torch.randint(len(kinds), (examples,), generator=chance).tolist()]
        found.append((ids, labels))
    return found


def kind_gradients(model, losses, labels, kinds=KINDS):
    """By autograd, one kind after another: each kind's part of the gradient of the mean, by parameter name."""
    parameters = dict(model.named_parameters())
    found = {name: torch.zeros(len(kinds), *p.shape, dtype=p.dtype) for name, p in parameters.items()}
    for number, kind in enumerate(kinds):
        own = [i for i, label in enumerate(labels) if label == kind]
        if own:
            value = losses[own].sum() / len(labels)
            gradients = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    found[name][number] = gradient
    return found


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}
