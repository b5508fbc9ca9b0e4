"""Hits of the index as they are shown."""

from __future__ import annotations

from eao.retrieval.search import Hit as IndexHit
from eao.serve.catalog import Listing, clip_id
from eao.serve.schemas import Explanation, FoundClip, Hit, Match
from eao.serve.videos import is_playable

_CLIPS = 20  # of one file


def show_hit(hit: IndexHit, listing: Listing) -> Hit:
    """A hit without the path of its file.

    Args:
        hit: of the index.
        listing: that has its file.
    """
    file = listing.paths[hit.file]
    url = f"/videos/{file.id}"
    return Hit(
        id=file.id,
        name=file.name,
        folder=file.folder,
        duration=file.duration,
        start=hit.start,
        end=hit.end,
        score=hit.score,
        clip=clip_id(file, hit.id),
        url=url,
        thumbnail=f"{url}/thumbnail?at={hit.start:.2f}",
        playable=is_playable(file),
        clips=[
            FoundClip(clip=clip_id(file, clip.id), start=clip.start, end=clip.end, score=clip.score)
            for clip in hit.clips[:_CLIPS]
        ],
        explanation=_show_explanation(hit),
    )


def _show_explanation(hit: IndexHit) -> Explanation | None:
    if hit.explanation is None:
        return None
    matches = {
        encoder: Match(cosine=match.cosine, standard_score=match.standard_score)
        for encoder, match in hit.explanation.matches.items()
    }
    return Explanation(strongest=hit.explanation.strongest, matches=matches)
