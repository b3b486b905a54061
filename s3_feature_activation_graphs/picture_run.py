"""All pictures of a run: what they depend on, the overviews, the sentences."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from pipeline_common.files import sha256_of_file, sha256_of_json
from pipeline_common.provenance import library_versions
from s1_compute_all_features.feature_store import token_labels
from s3_feature_activation_graphs import overview_matrices, overview_plots
from s3_feature_activation_graphs.activation_summary import LIBRARIES, source_line
from s3_feature_activation_graphs.feature_traces import DrawnFeature, Traces
from s3_feature_activation_graphs.picture_style import SentenceToDraw, fitted_style
from s3_feature_activation_graphs.plotting_utils import save
from s3_feature_activation_graphs.sentence_workers import draw_sentences

logger = logging.getLogger(__name__)

SINK_NOTE = "  |  pale token = attention sink, without a value"


class PictureRun:
    """The pictures of one run: the overviews of a dataset and a picture for each of some sentences."""

    def __init__(
        self,
        traces: Traces,
        ranked: Sequence[DrawnFeature],
        labels: Sequence[int],
        sentences: Sequence[int],
        *,
        figsize: tuple[float, float],
        dpi: int,
        max_token_len: int,
        free_y: bool,
    ) -> None:
        """Prepare a run; nothing is drawn yet.

        Args:
            traces: the features to draw.
            ranked: every feature of the results, best first.
            labels: of the sentences that the overviews show.
            sentences: indices of those that get a picture.
            figsize: width and height of a sentence's picture in inches.
            dpi: pixels per inch.
            max_token_len: cut tokens to so many characters.
            free_y: fit each sentence's y axis instead of sharing one.
        """
        self._traces, self._ranked, self._labels = traces, ranked, labels
        store = traces.store
        self._sentences = [
            SentenceToDraw(
                index=sentence,
                text=store.sentences[sentence],
                label=int(store.labels[sentence]),
                held_out=bool(store.held_out[sentence]),
                tokens=token_labels(store.tokens.text[traces.tokens_of(sentence)]).tolist(),
                activations=traces.sentence(sentence),
                sinks=traces.sinks[traces.tokens_of(sentence)],
            )
            for sentence in sentences
        ]
        self._style, missing = fitted_style(
            self._sentences,
            figsize=figsize,
            dpi=dpi,
            max_token_len=max_token_len,
            # Over the whole store, so that pictures of different labels and runs can be laid side by side.
            y_max=None if free_y else float(traces.peaks.max()),
            source=source_line(store) + (SINK_NOTE if traces.sinks.any() else ""),
        )
        if missing:
            logger.warning(
                "no installed font has %d of the characters (%s); they are drawn as boxes: "
                "install a font that has them, such as one of the Noto family",
                len(missing),
                " ".join(missing[:10]),
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that the pictures depend on, the drawing code included."""
        code = Path(__file__).parent.glob("*.py")
        return sha256_of_json(
            {
                "store": self._traces.store.fingerprint,
                "features": [repr(feature) for feature in self._traces.features],
                "ranked": [repr(feature) for feature in self._ranked],
                "labels": list(self._labels),
                "sentences": [sentence.index for sentence in self._sentences],
                "style": dataclasses.asdict(self._style),
                "code": {path.name: sha256_of_file(path) for path in code},
                "libraries": library_versions(LIBRARIES),
            }
        )

    @property
    def overviews(self) -> dict[str, Callable[[], Figure]]:
        """File name to what draws it; two of them need something to compare."""
        traces, labels = self._traces, self._labels
        figures: dict[str, Callable[[], Figure]] = {
            "overview_trajectories.png": partial(overview_plots.trajectories_figure, traces, labels),
            "overview_distributions.png": partial(overview_plots.distributions_figure, traces, labels),
            "overview_heatmap.png": partial(overview_plots.heatmap_figure, traces, labels),
        }
        if self._ranked:
            figures["overview_layer_map.png"] = partial(
                overview_matrices.layer_map_figure, traces.store, self._ranked
            )
        if len(traces.features) > 1:
            figures["overview_coactivation.png"] = partial(
                overview_matrices.coactivation_figure, traces, labels
            )
        return figures

    @property
    def files(self) -> list[str]:
        """Every picture, relative to the output folder, overviews first."""
        return [*self.overviews, *(sentence.file for sentence in self._sentences)]

    def draw(self, folder: Path, n_workers: int) -> None:
        """Draw the pictures that the folder lacks, those of sentences by worker processes.

        Raises:
            UserError: a worker was killed.
        """
        files = self.files
        n_there = sum((folder / file).is_file() for file in files)
        if n_there:
            logger.info("an earlier run was stopped: %d of its %d pictures are kept", n_there, len(files))
        for name, figure_of in self.overviews.items():
            if not (folder / name).is_file():
                save(figure_of(), folder / name, self._style.dpi)
        draw_sentences(folder, self._sentences, self._traces.features, self._style, n_workers)
