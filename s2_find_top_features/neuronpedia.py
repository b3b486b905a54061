"""Neuronpedia: the page of a feature, and one link that opens several features together."""

import json
import urllib.parse
from collections.abc import Sequence

SITE = "https://www.neuronpedia.org"


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
    f"{SITE}/quick-list/?name={urllib.parse.quote(name)}&features={urllib.parse.quote(json.dumps(entries))}"
