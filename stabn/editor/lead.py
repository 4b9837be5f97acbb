"""What a lead's pages ask for: the overview, comparing and judging curves, export, import, and finishing the round."""

import dataclasses
from itertools import combinations
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from stabn.attention.edit_document import Edit, Review
from stabn.attention.edits import EditConflict, save_edit
from stabn.editor.agreement import agreement
from stabn.editor.annotate import NUMBER, number
from stabn.editor.auth import User
from stabn.editor.board import RoundSettings
from stabn.editor.curves import MAX_SLOT, edit_json
from stabn.editor.exchange import MAX_ARRAY_BYTES, AlreadyCorrected, export_lines, import_array, import_lines, now
from stabn.editor.http import MAX_IMPORT_BYTES, ApiError, read_body, read_json, run_in_threadpool
from stabn.editor.overview import overview
from stabn.editor.queue import state_of
from stabn.editor.review import ReviewQueue
from stabn.editor.services import Services


class Lead:
    """The handlers behind /api/lead; the application lets only leads in."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.board, self.queue = services.board, services.queue
        self.review_queue = ReviewQueue(self.board, self.queue)

    async def overview(self, request: Request) -> Response:
        """Return progress, people, agreement and settings of the round."""
        content = await run_in_threadpool(overview, self.board, self.queue)
        content["settings"] = dataclasses.asdict(self.board.settings)
        self.services.finished = await run_in_threadpool(self.services.finish.record)
        content["finished"] = self.services.shown_finish()
        content["target"] = self.services.finish.target
        return JSONResponse(content)

    async def next_review(self, request: Request) -> Response:
        """Return the next video that waits for a lead's word, and how many do; its query may narrow them down."""
        query = request.query_params
        passed = set(query.get("passed", "").split(",")[-200:])
        person, action = query.get("person", ""), number(query.get("action"))
        video_id, waiting = await run_in_threadpool(self.review_queue.next, passed, person, action)
        return JSONResponse({"video_id": video_id, "waiting": waiting})

    async def compare(self, request: Request) -> Response:
        """Return all curves of a video, with their agreement."""
        video = self.board.video(request.path_params["video_id"])
        info = await run_in_threadpool(self.board.info, video.video_id)
        edits = [edit for _, edit in sorted(self.board.edits(video.video_id).items())]
        rows = []
        for first, second in combinations(edits, 2):
            if found := agreement(first.edited_attention, second.edited_attention):
                rows.append({"slots": [first.slot, second.slot], **dataclasses.asdict(found)})
        return JSONResponse(
            {
                "video_id": video.video_id,
                "class_index": video.class_index,
                "predicted": video.predicted,
                "score": video.score,
                "num_frames": video.num_frames,
                "width": video.width,
                "height": video.height,
                "crop": info.crop,
                "curve": info.curve,
                "top": info.top,
                "edits": [{**(edit_json(edit) or {}), "state": state_of(edit)} for edit in edits],
                "waits": self.review_queue.waits(video.video_id),
                "agreement": rows,
            }
        )

    async def review(self, request: Request) -> Response:
        """Accept a curve, which becomes what is learnt from, or send it back to its editor."""
        user: User = request.state.user
        video = self.board.video(request.path_params["video_id"])
        body = await read_json(request, slot=int, revision=int, verdict=str, note=str)
        if body["verdict"] not in ("accepted", "sent_back"):
            raise ApiError(400, "bad_request", "verdict: accepted or sent_back")
        edit = await run_in_threadpool(self._review, video.video_id, user.name, body)
        return JSONResponse({"edit": edit_json(edit)})

    async def settings(self, request: Request) -> Response:
        """Set how many of the videos several people correct, and how many people."""
        body = await read_json(request, shared_share=NUMBER, people_per_shared=int)
        if not 0 <= body["shared_share"] <= 1 or not 2 <= body["people_per_shared"] <= MAX_SLOT:
            raise ApiError(400, "bad_request", f"give a share from 0 to 1, and 2 to {MAX_SLOT} people")
        settings = RoundSettings(float(body["shared_share"]), body["people_per_shared"])
        await run_in_threadpool(self.board.change_settings, settings)
        return JSONResponse(dataclasses.asdict(settings))

    async def export(self, request: Request) -> Response:
        """Send all edits as JSON Lines."""
        await run_in_threadpool(self.board.refresh)
        name = f"edits-{self.board.round.round_id}.jsonl"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(export_lines(self.board), media_type="application/jsonl", headers=headers)

    async def import_lines(self, request: Request) -> Response:
        """Take edits from JSON Lines; with an error in any line nothing is written."""
        data = await read_body(request, MAX_IMPORT_BYTES)
        result = await run_in_threadpool(self._import, data)
        return JSONResponse(dataclasses.asdict(result), 400 if result.errors else 200)

    async def import_array(self, request: Request) -> Response:
        """Take one array of the desktop tool; 409 where a person corrected the video, but for the query replace=1."""
        user: User = request.state.user
        video = self.board.video(request.path_params["video_id"])
        data = await read_body(request, MAX_ARRAY_BYTES)
        replace = request.query_params.get("replace") == "1"
        try:
            edit = await run_in_threadpool(import_array, self.board, video.video_id, data, user.name, replace)
        except AlreadyCorrected as error:
            raise ApiError(409, "corrected", str(error)) from None
        return JSONResponse({"edit": edit_json(edit)})

    async def finish(self, request: Request) -> Response:
        """Finish the round and start what follows, once."""
        user: User = request.state.user
        body = await read_json(request, anyway=bool)
        record = await run_in_threadpool(self.services.finish.run, user.name, body["anyway"])
        self.services.finished = record
        await run_in_threadpool(self.services.watch)
        return JSONResponse(record)

    def _import(self, data: bytes) -> Any:
        self.board.refresh()
        return import_lines(self.board, data)

    def _review(self, video_id: str, reviewer: str, body: dict[str, Any]) -> Edit:
        judged = self.board.load(video_id, body["slot"])
        if judged is None or judged.revision != body["revision"]:
            raise ApiError(409, "conflict", "it was changed meanwhile; look again", theirs=edit_json(judged))
        accepted = body["verdict"] == "accepted"
        if accepted and judged.status == "draft":
            raise ApiError(409, "draft", f"{judged.editor} has not finished it; send it back or finish it yourself")
        target = self.board.load(video_id, 1) if accepted else judged
        edit = dataclasses.replace(
            judged,
            slot=1 if accepted else judged.slot,
            revision=target.revision + 1 if target else 1,
            status=judged.status if accepted else "draft",
            skip_reason=judged.skip_reason if accepted else None,
            edited_at=now(),
            review=Review(verdict=body["verdict"], reviewer=reviewer, reviewed_at=now(), note=body["note"]),
        )
        try:
            save_edit(self.board.round, edit, self.board.info(video_id).curve)
        except EditConflict as error:
            self.board.put(error.theirs)
            raise ApiError(
                409, "conflict", f"{error.theirs.editor} saved it just now; look again", theirs=edit_json(error.theirs)
            ) from None
        self.board.put(edit)
        return edit
