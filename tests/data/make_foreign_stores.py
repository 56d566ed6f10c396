"""How tests/data/foreign was made: by bergson 2.5.1 and traker 0.3.2 themselves, in an empty folder.

    pip install --no-deps --target OTHERS bergson==2.5.1 traker==0.3.2  (and what bergson asks for)
    PYTHONPATH=OTHERS:. HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python tests/data/make_foreign_stores.py EMPTY

The tiny model and its data are made there too, under relative names, and not kept: `texts` below and `save_tiny` make
them again in the tests. Of bergson's files those that are pickles are left out; nothing here reads them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.tiny import SENTENCES, save_tiny, write_jsonl

TEXTS = [SENTENCES[0] * 2, SENTENCES[1] * 2, "x", *SENTENCES[2:], *(s * 2 for s in SENTENCES[2:]), *SENTENCES[:2]]
"""The third is one token long: bergson has no gradient for it, and leaves its row zero."""
SHORT = ["the oak", "x", "One, two, three", "of the leaves"]
"""What the rows of single positions are of."""
PICKLES = ("*.pth", "*.pt")


def rows(texts):
    return [{"text": text, "kind": f"k{i % 3}"} for i, text in enumerate(texts)]


def build(store, data, *flags):
    command = [sys.executable, "-m", "bergson", "build", store, "--model", "model", "--dataset", data]
    subprocess.run([*command, "--token_batch_size", "64", "--truncation", *flags], check=True)
    for pattern in PICKLES:
        for path in Path(store).glob(pattern):
            path.unlink()


def featurize():
    import torch
    from trak import TRAKer
    from trak.projectors import BasicProjector, ProjectionType

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    num_parameters = sum(p.numel() for p in model.parameters())
    projector = BasicProjector(
        grad_dim=num_parameters, proj_dim=32, seed=0, proj_type=ProjectionType.rademacher, device="cpu", block_size=16
    )
    tracer = TRAKer(
        model=model,
        task="image_classification",
        train_set_size=len(TEXTS),
        save_dir="trak",
        device="cpu",
        proj_dim=32,
        projector=projector,
        use_half_precision=True,
    )
    tracer.load_checkpoint(model.state_dict(), model_id=0)
    tracer.featurize(batch=[torch.randn(len(TEXTS), 6), torch.arange(len(TEXTS)) % 3], num_samples=len(TEXTS))
    tracer.finalize_features()


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    save_tiny("model")
    write_jsonl("texts.jsonl", rows(TEXTS))
    write_jsonl("short.jsonl", rows(SHORT))
    build("bergson", "texts.jsonl", "--projection_dim", "4")
    build("bergson-bfloat16", "texts.jsonl", "--projection_dim", "4", "--precision", "bf16")
    build("bergson-tokens", "short.jsonl", "--projection_dim", "2", "--attribute_tokens")
    featurize()
    for name in ("model", "texts.jsonl", "short.jsonl"):
        path = Path(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
