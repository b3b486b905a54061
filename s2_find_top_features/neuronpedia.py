"""Neuronpedia: the page of a feature, one link that opens several, and what the site says about a feature."""

import json
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.files import read_json, write_json
from s2_find_top_features.ranked_features import RankedFeature

logger = logging.getLogger(__name__)

SITE = "https://www.neuronpedia.org"
SITE_VARIABLE = "NEURONPEDIA_BASE_URL"
"""Environment variable that names another server with Neuronpedia's API, for fetching only."""

SECONDS_BETWEEN_REQUESTS = 1.0
N_ATTEMPTS = 3
N_TEXTS = 3

_TIMEOUT_SECONDS = 20.0
_LONGEST_WAIT_SECONDS = 60.0
_USER_AGENT = "sae-concept-features"


class Unreachable(Exception):
    """The server did not answer, or not in a way that another feature would change."""


def feature_url(neuronpedia_id: str, feature_id: int) -> str:
    """A feature's page; empty where the SAE has no page: no link is better than a wrong one.

    >>> feature_url("gemma-2-2b/12-gemmascope-res-16k", 1767)
    'https://www.neuronpedia.org/gemma-2-2b/12-gemmascope-res-16k/1767'
    >>> feature_url("", 1767)
    ''
    """
    return f"{SITE}/{neuronpedia_id}/{feature_id}" if neuronpedia_id else ""


def quick_list_url(name: str, features: Sequence[tuple[str, int]]) -> str:
    """One link that opens several features together.

    Args:
        name: the list's title.
        features: (Neuronpedia id of the SAE, feature_id); those without an id are left out.

    Returns:
        The link, in the form of sae-lens's ``get_neuronpedia_quick_list``; empty where no feature has a page.
    """
    entries = []
    for neuronpedia_id, feature_id in features:
        if neuronpedia_id:
            model, source = neuronpedia_id.split("/", 1)
            entries.append({"modelId": model, "layer": source, "index": str(feature_id)})
    if not entries:
        return ""
    query = urllib.parse.urlencode(
        {"name": name, "features": json.dumps(entries)}, quote_via=urllib.parse.quote
    )
    return f"{SITE}/quick-list/?{query}"


def fetch_explanations(
    features: Sequence[RankedFeature], cache: Path, on_feature: Callable[[], object] = lambda: None
) -> list[dict[str, Any]]:
    """Neuronpedia's own labels and top activating texts of the features that have a page.

    Answers are kept in the cache folder, one file a feature, and never asked for again. Between requests a
    second passes. When the server cannot be reached, that is logged once and what the cache holds is given.

    Args:
        features: the features, in ranking order.
        cache: the folder of kept answers.
        on_feature: called after each feature.

    Returns:
        Per feature with a page that is known: its rank, SAE, feature_id and page; ``labels`` (texts, may be
        none); ``top_texts``: each a ``text`` with the peak token in ``>>`` and ``<<``, and its
        ``max_activation``.
    """
    site = os.environ.get(SITE_VARIABLE, SITE).rstrip("/")
    explanations, off_line, asked_before = [], False, False
    for feature in features:
        on_feature()
        if not feature.neuronpedia_url:
            continue
        page = feature.neuronpedia_url.removeprefix(f"{SITE}/")
        kept = cache / f"{page.replace('/', '--')}.json"
        if kept.is_file():
            answer = read_json(kept, "kept answer of Neuronpedia")
        elif off_line:
            continue
        else:
            if asked_before:
                time.sleep(SECONDS_BETWEEN_REQUESTS)
            asked_before = True
            try:
                answer = _ask(f"{site}/api/feature/{page}")
            except Unreachable as error:
                logger.warning("note: Neuronpedia: %s; going on without its explanations", error)
                off_line = True
                continue
            write_json(kept, answer)
        if answer is not None:
            explanations.append(_explanation(feature, answer))
    return explanations


def _ask(url: str) -> dict[str, Any] | None:
    """What the server says, cut to what is used; None where it does not know the feature.

    Raises:
        Unreachable: no answer, or one that is not Neuronpedia's.
    """
    for attempt in range(N_ATTEMPTS):
        try:
            request = urllib.request.Request(url, headers={"User-Agent": _USER_AGENT})
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as reply:
                return _relevant(json.loads(reply.read()))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            if error.code not in (429, 500, 502, 503, 504) or attempt == N_ATTEMPTS - 1:
                raise Unreachable(f"{url} answered {error.code}") from None
            time.sleep(_seconds_to_wait(error.headers.get("Retry-After"), attempt))
        except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreachable(f"{url}: {error}") from None
    raise AssertionError("unreachable: the last attempt returns or raises")


def _relevant(answer: Any) -> dict[str, Any] | None:
    if answer is None:
        return None
    labels = [entry["description"] for entry in answer.get("explanations") or [] if entry["description"]]
    texts = [
        {"tokens": [str(token) for token in entry["tokens"]], "values": [float(v) for v in entry["values"]]}
        for entry in answer.get("activations") or []
        if entry["tokens"] and len(entry["tokens"]) == len(entry["values"])
    ]
    return {"labels": labels, "texts": texts}


def _seconds_to_wait(retry_after: str | None, attempt: int) -> float:
    asked = float(retry_after) if retry_after is not None and retry_after.isdigit() else 2.0**attempt
    return min(asked, _LONGEST_WAIT_SECONDS)


def _explanation(feature: RankedFeature, answer: dict[str, Any]) -> dict[str, Any]:
    try:
        peaks = [(max(entry["values"]), entry) for entry in answer["texts"]]
        peaks.sort(key=lambda pair: -pair[0])
        top_texts = []
        for peak, entry in peaks[:N_TEXTS]:
            place = entry["values"].index(peak)
            tokens = [token.replace("▁", " ") for token in entry["tokens"]]
            word = tokens[place].lstrip()
            tokens[place] = f"{tokens[place].removesuffix(word)}>>{word}<<"
            top_texts.append({"text": "".join(tokens).strip(), "max_activation": peak})
        labels = list(answer["labels"])
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(
            f"{feature.neuronpedia_url}: the kept answer is damaged; delete the cache folder"
        ) from None
    return {
        "rank": feature.rank,
        "sae_name": feature.sae_name,
        "feature_id": feature.feature_id,
        "neuronpedia_url": feature.neuronpedia_url,
        "labels": labels,
        "top_texts": top_texts,
    }
