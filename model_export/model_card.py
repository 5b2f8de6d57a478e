"""The README.md of a checkpoint folder."""

from service.contract.manifest import Manifest

_CARD = """\
---
license: {licence_tag}
library_name: transformers
tags: [notegrade, relevance, reranking]
---
# {name}

A Notegrade checkpoint: it grades how well a note answers a search query, from 0 to {top}.

**Not trained for relevance.** These are the weights of its base, unchanged, with a criteria prompt around
them (zero-shot). It shows that everything around the model works. Do not rank for real users with it: put a
trained student in its place.

| | |
| --- | --- |
| Base | {base} |
| Licence of the base, and so of these weights | {licence} |
| Source | {source} |
| Weights | float32 safetensors |
| Template | {template} |
| Criteria | {criteria} |
| Reads | query up to {query} tokens, note up to {note} tokens, the rest of a note is cut |
| Calibration | {calibration} |
| Made by | notegrade {version} |
| Fingerprint | `{fingerprint}` |

## The criteria

```text
{criteria_text}
```

## Limits

- What the base does not know, this does not know: small models grade little better than chance without training,
  and worst outside English.
- A probability is raw unless the calibration above says otherwise: don't read 0.9 as nine in ten.
- A note can try to talk the model into a grade. Its text never becomes a control token, but the model reads it.

`manifest.json` says everything else, and `probes.jsonl` holds pairs whose distribution an engine must reproduce
before it may serve this folder.
"""


def render_model_card(manifest: Manifest) -> str:
    """Markdown that says what the checkpoint is, what it is not, and whose licence it has."""
    criteria = manifest.criteria[0]
    return _CARD.format(
        name=manifest.name,
        top=manifest.labels[-1].grade,
        base=manifest.base.name,
        licence=manifest.base.licence,
        licence_tag=manifest.base.licence.lower(),  # as model hubs spell it
        source=manifest.base.source,
        template=manifest.template.name,
        criteria=criteria.name,
        criteria_text=criteria.text,
        query=manifest.limits.max_query_tokens,
        note=manifest.limits.max_note_tokens,
        calibration=manifest.calibration.name,
        version=manifest.lineage.code_version,
        fingerprint=manifest.fingerprint,
    )
