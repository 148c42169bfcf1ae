"""Images drawn from models of MNIST and of faces (smiles), beside pythae's VAE with two of its samplers.

    python benchmarks/samples.py [--sets mnist,smiles] [--budget 12m] [--pictures FOLDER]

Ours is trained, exported, scored and sampled by the commands. The VAE of pythae (its own network, loss and trainer, 16
latent dimensions as in its benchmarks) gets the CPU seconds that ours took, then a sampler: N(0, I), or a mixture of
ten Gaussians fitted to the codes of the training images. One thread.

`*_frechet` is the Frechet distance between Gaussians fitted to the features of drawn and of test images. The features
are the last hidden layer of a small classifier of the labels that this script trains on the training images: the
figures compare contenders within one run and with nothing else, least of all with an FID. `*_floor_frechet` compares as
many training images with the test images. Images are drawn without the noise of single pixels by both; `ours_noisy`
draws it. `*_bits_per_pixel` is our score of the test images; `*_pca_rmse` and `*_ours_rmse` are the root mean squared
error of test images from 40 principal components and from our codes, in shades.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from harness import finish, parser, trained
from numpy.typing import NDArray
from pythae_peer import train
from torch import Tensor, nn
from torch.nn import functional

import parvae
from parvae.rows import read_inputs

SETS = {"mnist": "label", "smiles": "smile"}
"""The column of labels of every set."""
EPOCHS = {"mnist": 4, "smiles": 10}
"""Of the classifier."""
FEATURES, BATCH = 64, 100
PEER_LATENT_SIZE, PEER_COMPONENTS = 16, 10
Figures = dict[str, float]
Pixels = NDArray[np.uint8]
"""(n, height, width)."""


def main() -> None:
    """Train and judge every contender on every set."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--sets", help="which of the sets, between commas; all, and the first alone with --quick")
    arguments.add_argument("--budget", default="12m", help="time for our training on each set, on one thread")
    arguments.add_argument("--run", type=Path, help="a run folder that is trained and exported already; needs --peer-s")
    arguments.add_argument("--peer-s", type=float, help="CPU seconds for pythae; by default what ours took")
    arguments.add_argument("--pictures", type=Path, help="folder for a PNG of test images and of each contender's")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    figures: Figures = {}
    sets = options.sets.split(",") if options.sets else [*SETS][: 1 if options.quick else None]
    for name in sets:
        figures |= {f"{name}_{key}": value for key, value in _judged(name, options).items()}
    finish(figures, as_json=options.json)


def _judged(name: str, options: argparse.Namespace) -> Figures:
    with tempfile.TemporaryDirectory() as temporary:
        run, figures = options.run or Path(temporary) / "run", {}
        if options.run is None:
            budget = "8s" if options.quick else options.budget
            data = options.data / name / "train-*.parquet"
            figures["ours_cpu_s"] = trained(run, data, "--label", SETS[name], "--budget", budget)
        vae = parvae.load(run / "model.vae")
        training, test = (_table(options.data, name, part, quick=options.quick) for part in ("train", "test"))
        pixels, test_pixels = (_pixels(vae, table) for table in (training, test))
        labels, test_labels = (table[SETS[name]].to_numpy().astype(np.int64) for table in (training, test))
        num_rows = len(test_pixels)
        classifier = _classifier(pixels, labels, num_epochs=1 if options.quick else EPOCHS[name])
        figures["classifier_accuracy"] = float(np.mean(_outputs(classifier, test_pixels).argmax(axis=1) == test_labels))
        drawn = {
            "floor": pixels[np.random.default_rng(0).permutation(len(pixels))[:num_rows]],
            "ours": _image(vae, vae.sample(num_rows)),
            "ours_noisy": _image(vae, vae.sample(num_rows, pixel_noise=True)),
        }
        figures["bits_per_pixel"] = float(vae.score(test).nats.mean(dtype=np.float64)) / math.log(2) / pixels[0].size
        again = _image(vae, vae.decode(vae.encode(test)))
        figures["ours_rmse"] = _rmse(again, test_pixels)
        figures["pca_rmse"] = _rmse(_principal_components(pixels, test_pixels, vae.latent_size), test_pixels)
        if not options.ours_only:
            allowed_s = 3.0 if options.quick else options.peer_s or figures["ours_cpu_s"]
            drawn |= _peers(pixels, num_rows, allowed_s)
    wanted = _outputs(classifier[:-1], test_pixels)
    for contender, images in drawn.items():
        figures[f"{contender}_frechet"] = frechet_distance(_outputs(classifier[:-1], images), wanted)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for contender, images in {**drawn, "test": test_pixels, "ours_reconstructed": again}.items():
            _draw(options.pictures / f"{name}_{contender}.png", images)
    return figures


def _table(folder: Path, name: str, part: str, *, quick: bool) -> pa.Table:
    table = pa.concat_tables([pq.read_table(path) for path in sorted((folder / name).glob(f"{part}-*.parquet"))])
    return table.slice(0, 500) if quick else table


def _pixels(vae: parvae.VAE, table: pa.Table) -> Pixels:
    inputs, _ = read_inputs(vae.schema, table)
    (pixels,) = inputs.values()
    return np.array(pixels[..., 0])


def _image(vae: parvae.VAE, columns: Mapping[str, NDArray[np.generic]]) -> Pixels:
    (name,) = [column.name for column in vae.schema.modelled]
    pixels = columns[name]
    return np.array(pixels.reshape(*pixels.shape[:3]), dtype=np.uint8)


def _rmse(found: NDArray[np.generic], wanted: Pixels) -> float:
    return float(np.sqrt(np.mean(np.square(found.astype(np.float64) - wanted))))


def _principal_components(training: Pixels, test: Pixels, num_components: int) -> NDArray[np.float64]:
    """`test` from its coordinates along the first components of `training`."""
    from sklearn.decomposition import PCA

    model = PCA(min(num_components, len(training)), svd_solver="randomized", random_state=0)
    model.fit(training.reshape(len(training), -1).astype(np.float32))
    again = model.inverse_transform(model.transform(test.reshape(len(test), -1).astype(np.float32)))
    return np.clip(again, 0.0, 255.0).reshape(test.shape)


def _classifier(pixels: Pixels, labels: NDArray[np.int64], *, num_epochs: int) -> nn.Sequential:
    """A small convolutional network; all but its last layer are the features."""
    torch.manual_seed(0)
    size = FEATURES * (-(-pixels.shape[1] // 8)) * (-(-pixels.shape[2] // 8))
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, FEATURES, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(size, FEATURES), nn.ReLU()),
        nn.Linear(FEATURES, int(labels.max()) + 1),
    )
    num_steps = num_epochs * (len(pixels) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps)
    generator = np.random.default_rng(0)
    order = np.concatenate([generator.permutation(len(pixels)) for _ in range(num_epochs)])
    for step in range(num_steps):
        batch = order[step * BATCH : (step + 1) * BATCH]
        loss = functional.cross_entropy(network(_scaled(pixels[batch])), torch.from_numpy(labels[batch]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return network.eval()


def _scaled(pixels: Pixels) -> Tensor:
    """(n, 1, height, width) in -1 to 1."""
    return torch.from_numpy(pixels).unsqueeze(1).float() / 127.5 - 1.0


@torch.no_grad()
def _outputs(network: nn.Sequential, pixels: Pixels) -> NDArray[np.float64]:
    parts = [network(_scaled(pixels[first : first + 1000])) for first in range(0, len(pixels), 1000)]
    return torch.cat(parts).double().numpy()


def frechet_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Between the Gaussians with the moments of two sets of features (n, d) (Dowson and Landau 1982)."""
    difference = first.mean(axis=0) - second.mean(axis=0)
    covariances = [np.cov(features, rowvar=False) for features in (first, second)]
    # The trace of the root of a product is the sum of the roots of its eigenvalues, which are real and at least 0.
    roots = np.sqrt(np.clip(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0.0, None))
    return float(difference @ difference + np.trace(covariances[0]) + np.trace(covariances[1]) - 2.0 * roots.sum())


def _peers(pixels: Pixels, num_rows: int, allowed_s: float) -> dict[str, Pixels]:
    """Images of pythae's VAE after `allowed_s` CPU seconds of its trainer, by sampler."""
    from pythae.models import VAE, VAEConfig
    from pythae.samplers import GaussianMixtureSampler, GaussianMixtureSamplerConfig, NormalSampler

    torch.manual_seed(0)
    images = torch.from_numpy(pixels).unsqueeze(1).float() / 255.0
    model = VAE(VAEConfig(input_dim=tuple(images.shape[1:]), latent_dim=PEER_LATENT_SIZE))
    train(model, images, batch_size=BATCH, allowed_cpu_s=allowed_s)
    model.eval()
    normal = NormalSampler(model=model)
    mixture = GaussianMixtureSampler(model, GaussianMixtureSamplerConfig(n_components=PEER_COMPONENTS))
    mixture.fit(images)
    drawn = {"pythae_normal": normal.sample(num_rows), "pythae_mixture": mixture.sample(num_rows)}
    return {
        name: np.rint(255.0 * found[:, 0].clamp(0.0, 1.0).numpy()).astype(np.uint8) for name, found in drawn.items()
    }


def _draw(path: Path, images: Pixels, *, side: int = 10) -> None:
    """The first `side` x `side` images as one PNG."""
    from PIL import Image

    rows = [np.hstack(list(images[first : first + side])) for first in range(0, side * side, side)]
    Image.fromarray(np.vstack(rows)).save(path)


if __name__ == "__main__":
    main()
