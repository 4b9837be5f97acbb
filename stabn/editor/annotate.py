"""What an annotator's page asks for: the queue, a video, its frames, saving, leases and what-if."""

import dataclasses
import re
from collections import Counter
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stabn.attention.edit_document import Edit
from stabn.attention.rounds import RoundVideo
from stabn.editor.auth import User
from stabn.editor.curves import Curves, edit_json
from stabn.editor.exchange import now
from stabn.editor.frames import MAX_PIECE
from stabn.editor.http import ApiError, read_json, run_in_threadpool
from stabn.editor.overview import actions, counts, curve_state
from stabn.editor.queue import FINISHED, Place, state_of
from stabn.editor.services import Services

PAGE = 100
REVISIONS = 50  # shown of a curve, the newest ones
NUMBER = (int, float)
FRAME_AGE = "private, max-age=31536000, immutable"


class Annotate:
    """The handlers behind /api and /frames that everybody may use."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.board, self.queue, self.leases = services.board, services.queue, services.leases
        self.curves = Curves(self.board, self.queue, self.leases)

    async def round(self, request: Request) -> Response:
        """Return the round's progress, and mine."""
        user: User = request.state.user
        board, mine = self.board, Counter(dict.fromkeys(("done", "second_opinion", "draft", "sent_back"), 0))
        for video_id in board.videos:
            own = [edit for _, edit in sorted(board.edits(video_id).items()) if edit.editor == user.name]
            if own:  # the first: an accepted copy in slot 1 is no second curve
                state = state_of(own[0])
                mine["done" if state in FINISHED else state] += 1
        return JSONResponse(
            {
                "round_id": board.round.round_id,
                "classes": board.round.classes,
                "total": len(board.videos),
                "counts": counts(board),
                "mine": mine,
                "actions": actions(board),
                "what_if": self._what_if_state(),
                "lease_seconds": self.leases.seconds,
                "finished": self.services.shown_finish(),
            }
        )

    async def videos(self, request: Request) -> Response:
        """Return a page of the videos, the most wrongly recognised first, filtered by action, state, person and text.

        A lead is shown the curve that is learnt from; with a person, that person's own.
        """
        user: User = request.state.user
        query = request.query_params
        state, text = query.get("state", ""), query.get("text", "").strip().lower()
        action, offset = number(query.get("action")), number(query.get("offset")) or 0
        person = query.get("person", "")
        rows, total = [], 0
        for video in self.queue.order:
            if action is not None and video.class_index != action:
                continue
            if text and text not in video.video_id.lower() and text not in video.label.lower():
                continue
            place = self._listed(video, user, user.name if state == "mine" else person)
            if place is None or (state == "done" and place.state not in FINISHED):
                continue
            if state not in ("", "mine", "done") and place.state != state:
                continue
            total += 1
            if offset < total <= offset + PAGE:
                rows.append(self._row(place, user))
        return JSONResponse({"total": total, "offset": offset, "videos": rows})

    def _listed(self, video: RoundVideo, user: User, person: str) -> Place | None:
        """Return what the list shows of a video; None: nothing of that person that this one may know of."""
        place = self.queue.place(video.video_id, user.name)
        if user.is_lead and not person:
            edit = self.board.edit(video.video_id)
            return Place(video, 1, edit, state_of(edit), blind=False)
        if user.is_lead:
            found = [edit for edit in self.board.own_edits(video.video_id).values() if edit.editor == person]
            return Place(video, found[0].slot, found[0], curve_state(self.board, found[0]), False) if found else None
        return place if not person or (place.edit is not None and place.edit.editor == person) else None

    async def next(self, request: Request) -> Response:
        """Lease the next video to this person."""
        user: User = request.state.user
        body = await read_json(request, passed=list, action=(int, type(None)))
        passed = {text for text in body["passed"][-200:] if isinstance(text, str)}
        lease = await run_in_threadpool(self.queue.next, user.name, passed, body["action"])
        return JSONResponse({"video_id": lease and lease.name})

    async def peek(self, request: Request) -> Response:
        """Return the video that would probably be next, so that its frames can be fetched early."""
        user: User = request.state.user
        query = request.query_params
        passed = {query.get("current", "")}
        candidates = self.queue.candidates(user.name, passed, number(query.get("action")))
        video_id = next((name for name, _ in candidates if name not in passed), None)
        video = self.board.videos[video_id] if video_id else None
        return JSONResponse({"video_id": video_id, "num_frames": video.num_frames if video else 0})

    async def open(self, request: Request) -> Response:
        """Return all that the page needs of a video, and take its lease unless somebody else has it."""
        user: User = request.state.user
        video = self._video(request)
        body = await read_json(request, take_over=bool, slot=(int, type(None)))
        info = await run_in_threadpool(self.board.info, video.video_id)
        await run_in_threadpool(self.queue.reload, video.video_id)
        place, lease, edit = await run_in_threadpool(self.curves.enter, video, user, body["slot"], body["take_over"])
        self.services.warm(video.video_id, place.slot)
        return JSONResponse(
            {
                **self._row(place, user),
                "blind": place.blind,
                "num_frames": video.num_frames,
                "width": video.width,
                "height": video.height,
                "curve": info.curve,
                "top": info.top,
                "true_score": video.true_score,
                "crop": info.crop,
                "edit": edit_json(edit),
                "lease": {"holder": lease.holder, "mine": lease.holder == user.name},
                "what_if": self._what_if_state(),
            }
        )

    async def revisions(self, request: Request) -> Response:
        """Return the saved revisions of a person's curve of a video, the newest first, without those of others."""
        user: User = request.state.user
        video = self._video(request)
        slot = number(request.query_params.get("slot")) or 1
        await self.curves.check_slot(video, user, slot)
        found, left_out = await run_in_threadpool(self.board.revisions, video.video_id, slot, REVISIONS)
        shown = [edit for edit in found if user.is_lead or self.queue.may_see(edit, user.name)]
        rows = [{**(edit_json(edit) or {}), "state": state_of(edit)} for edit in shown]
        return JSONResponse({"revisions": rows, "left_out": left_out})

    async def keep(self, request: Request) -> Response:
        """Prolong the lease of a video that is open in a page."""
        user: User = request.state.user
        video = self._video(request)
        slot = (await read_json(request, slot=int))["slot"]
        await self.curves.check_slot(video, user, slot)
        lease = await run_in_threadpool(self.curves.take, video.video_id, slot, user.name, False)
        return JSONResponse({"holder": lease.holder, "mine": lease.holder == user.name})

    async def leave(self, request: Request) -> Response:
        """End the lease of a video."""
        user: User = request.state.user
        video = self._video(request)
        slot = (await read_json(request, slot=int))["slot"]
        await self.curves.check_slot(video, user, slot)
        await run_in_threadpool(self.leases.release, video.video_id, slot, user.name)
        return JSONResponse({})

    async def save(self, request: Request) -> Response:
        """Save a revision; 409 with what is there if somebody saved since, or edits the video now."""
        user: User = request.state.user
        video = self._video(request)
        body = await read_json(
            request,
            slot=int,
            based_on=int,
            edited_attention=list,
            status=str,
            skip_reason=(str, type(None)),
            note=str,
            seconds=NUMBER,
        )
        slot = body["slot"]
        await self.curves.check_slot(video, user, slot)
        own = (await run_in_threadpool(self.board.info, video.video_id)).curve
        edit = Edit(
            round_id=self.board.round.round_id,
            video_id=video.video_id,
            revision=body["based_on"] + 1,
            num_frames=video.num_frames,
            model_attention=own,
            edited_attention=tuple(round(v, 5) if isinstance(v, float) else v for v in body["edited_attention"]),
            status=body["status"],
            skip_reason=body["skip_reason"],
            slot=slot,
            note=body["note"],
            seconds=min(max(round(float(body["seconds"]), 1), 0.0), 86400.0),
            editor=user.name,
            edited_at=now(),
        )
        former = self.board.edit(video.video_id, slot)
        self.curves.check_own(former, user)
        review = former.review if former is not None else None
        if review is not None and review.verdict == "accepted" and not user.is_lead:
            raise ApiError(409, "accepted", f"{review.reviewer} has accepted this curve; ask a lead to send it back")
        if review is not None and review.verdict == "sent_back" and edit.status == "draft":
            edit = dataclasses.replace(edit, review=review)  # until it is done, it is there to read
        saved = await run_in_threadpool(self.curves.save, edit, own, user)
        return JSONResponse({"edit": edit_json(saved)})

    async def what_if(self, request: Request) -> Response:
        """Recognise a video again with this attention."""
        user: User = request.state.user
        video = self._video(request)
        curve = (await read_json(request, edited_attention=list))["edited_attention"]
        if len(curve) != video.num_frames or not all(
            value is None or (isinstance(value, NUMBER) and not isinstance(value, bool) and 0 <= value <= 1)
            for value in curve
        ):
            raise ApiError(400, "bad_request", f"give {video.num_frames} values from 0 to 1, or null")
        own = (await run_in_threadpool(self.board.info, video.video_id)).curve
        return JSONResponse(await self.services.recognise(user.name, video.video_id, curve, own))

    async def frame(self, request: Request) -> Response:
        """Return one frame as it is stored; it never changes."""
        index = int(request.path_params["index"])
        return await self._frames(request, index, index, "image/jpeg")

    async def piece(self, request: Request) -> Response:
        """Return neighbouring frames in one answer: JPEG after JPEG, their sizes in a header."""
        first, last = int(request.path_params["first"]), int(request.path_params["last"])
        if not first <= last < first + MAX_PIECE:
            raise ApiError(400, "bad_request", f"frames {first} to {last}: ask for 1 to {MAX_PIECE} at once")
        return await self._frames(request, first, last, "video/x-motion-jpeg")

    async def _frames(self, request: Request, first: int, last: int, media_type: str) -> Response:
        if request.path_params["round_id"] != self.board.round.round_id:
            raise ApiError(404, "not_found", "the page belongs to another round; reload it")
        video = self._video(request)
        if last >= video.num_frames:
            raise ApiError(404, "not_found", f"video {video.video_id} has {video.num_frames} frames")
        etag = f'"{self.board.round.manifest_fingerprint}-{first}-{last}"'
        headers = {"Cache-Control": FRAME_AGE, "ETag": etag}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        frames = self.services.frames.cached(video.video_id, first, last)
        if frames is None:
            frames = await run_in_threadpool(self.services.frames.piece, video.video_id, first, last)
        headers["X-Frame-Sizes"] = ",".join(str(len(jpeg)) for jpeg in frames)
        return Response(b"".join(frames), media_type=media_type, headers=headers)

    async def spatial(self, request: Request) -> Response:
        """Return the network's spatial attention: bytes of (num_frames, h, w), h and w in the headers."""
        video = self._video(request)
        maps = await run_in_threadpool(self.services.frames.spatial, video.video_id)
        headers = {
            "X-Height": str(maps.shape[1]),
            "X-Width": str(maps.shape[2]),
            "Cache-Control": "private, max-age=3600",
        }
        return Response(maps.tobytes(), media_type="application/octet-stream", headers=headers)

    def _video(self, request: Request) -> RoundVideo:
        video = self.board.videos.get(request.path_params["video_id"])
        if video is None:
            raise ApiError(404, "not_found", f"video {request.path_params['video_id']!r:.140} is not in this round")
        return video

    def _row(self, place: Place, user: User) -> dict[str, Any]:
        video = place.video
        lease = self.leases.active(video.video_id, place.slot)
        return {
            "video_id": video.video_id,
            "class_index": video.class_index,
            "predicted": video.predicted,
            "score": video.score,
            "num_frames": video.num_frames,
            "slot": place.slot,
            "state": place.state,
            "editor": place.edit.editor if place.edit else None,
            "skip_reason": place.edit.skip_reason if place.edit else None,
            "busy": lease.holder if lease and lease.holder != user.name else None,
            "shared": self.queue.is_shared(video.video_id),
        }

    def _what_if_state(self) -> dict[str, str]:
        return {"state": self.services.what_if.state, "reason": self.services.what_if.reason}


def number(text: str | None) -> int | None:
    """Return a whole number from a query, None if there is none."""
    return int(text) if text and re.fullmatch(r"[0-9]{1,9}", text) else None
