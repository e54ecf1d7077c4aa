"""The pages of the site."""

from __future__ import annotations

from email.message import EmailMessage
from typing import Any
from uuid import UUID

from flask import abort
from flask import Blueprint
from flask import current_app
from flask import jsonify
from flask import redirect
from flask import render_template
from flask import request
from flask import Response
from flask import url_for
from kombu.exceptions import OperationalError
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from . import mail
from . import store
from . import table
from . import tasks

blueprint = Blueprint("site", __name__)

#: The steps of an upload, in order, with what the page says while one of them is due.
STEPS = {
    "read": "Reading the rows",
    "summarize": "Computing the summary",
    "mail": "Sending the mail",
}


@blueprint.get("/")
def index() -> str:
    """Ask for a file, and list the earlier ones."""
    return render_template("index.html", uploads=store.newest()[:50])


@blueprint.post("/")
def upload_file() -> BaseResponse:
    """Keep the uploaded file, have it processed, and answer at once."""
    file = request.files.get("file")
    if file is None or not file.filename:
        abort(400, "No file was chosen.")
    if not file.filename.lower().endswith(".csv"):
        abort(400, "Only CSV files are taken: the name must end in .csv.")
    upload = store.add(file)
    try:
        table.check_start(upload.csv)
        tasks.process(upload.id)
    except table.BadFile as error:
        upload.remove()
        abort(400, str(error))
    except OperationalError:
        current_app.logger.exception("The queue did not take upload %s", upload.id)
        upload.remove()
        abort(503, "The file could not be queued. Please try again later.")
    return redirect(url_for(".show_upload", upload_id=upload.id), 303)


@blueprint.get("/uploads/<uuid:upload_id>")
def show_upload(upload_id: UUID) -> str:
    """Show an upload: its progress, then its summary."""
    upload = _upload_or_404(upload_id)
    return render_template("upload.html", upload=upload, status=status_of(upload))


@blueprint.get("/uploads/<uuid:upload_id>/status.json")
def upload_status(upload_id: UUID) -> Response:
    """Tell a script how far an upload is."""
    return jsonify(status_of(_upload_or_404(upload_id)))


@blueprint.get("/uploads/<uuid:upload_id>/summary.json")
def upload_summary(upload_id: UUID) -> Response:
    """Give the summary of an upload to a program."""
    summary = _upload_or_404(upload_id).summary
    if summary is None:
        abort(404, "There is no summary of this upload yet.")
    return jsonify(summary)


@blueprint.get("/mails")
def list_mails() -> str:
    """List the received mails."""
    return render_template("mails.html", mails=mail.received(), date_of=mail.date_of)


@blueprint.get("/mails/<key>")
def show_mail(key: str) -> str:
    """Show a received mail as text."""
    message = _mail_or_404(key)
    return render_template("mail.html", key=key, message=message, text=mail.text_of(message))


@blueprint.get("/mails/<key>.eml")
def mail_source(key: str) -> Response:
    """Give a received mail as it came."""
    return Response(_mail_or_404(key).as_bytes(), mimetype="text/plain")


def status_of(upload: store.Upload) -> dict[str, Any]:
    """Say how far an upload is, for the page and for its script.

    What is finished stands in files, which stay; only the step at work is asked about.
    """
    if upload.error:
        return {"state": "failed", "text": upload.error}
    if upload.mail_id:
        url = url_for("site.show_mail", key=mail.key_of(upload.mail_id))
        return {"state": "done", "text": "Done: the summary was sent by mail.", "mail": url}
    step = _step_of(upload)
    result = tasks.celery.AsyncResult(tasks.step_id(upload.id, step))
    status = {"state": "working", "step": step, "text": f"{STEPS[step]} …"}
    if result.state == "PROGRESS":
        current, total = result.info["current"], result.info["total"]
        status |= {"current": current, "total": total}
        status["text"] = f"{STEPS[step]}: {current:,} of {total:,}"
    elif result.state in ("FAILURE", "REVOKED"):
        return {"state": "failed", "text": tasks.explain(result.result)}
    elif result.state == "RETRY":
        status["text"] = f"{STEPS[step]} did not work; it will be tried again."
    elif result.state == "PENDING" and step == "read":
        status["text"] = "Waiting for a worker …"
    return status


def _step_of(upload: store.Upload) -> str:
    if upload.summary is not None:
        return "mail"
    return "summarize" if upload.table.exists() else "read"


def _mail_or_404(key: str) -> EmailMessage:
    # Looked up among the mails that are there: the key never becomes a path.
    return mail.received().get(key) or abort(404, "There is no such mail.")


def _upload_or_404(upload_id: UUID) -> store.Upload:
    return store.find(str(upload_id)) or abort(404, "There is no such upload.")


@blueprint.app_errorhandler(HTTPException)
def show_error(error: HTTPException) -> tuple[str, int]:
    """Show what went wrong in the look of the site."""
    text = error.description
    if error.code == 413:
        limit = (current_app.config["MAX_CONTENT_LENGTH"] or 0) // 2**20
        text = f"The file is too large: at most {limit} MB are taken."
    return render_template("error.html", error=error, text=text), error.code or 500


@blueprint.after_app_request
def protect(response: Response) -> Response:
    """Let the pages load nothing but their own style and script."""
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    if request.endpoint != "static":
        response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.app_template_filter()
def figure(value: object) -> str:
    """Write a value of a file with as many digits as are worth reading."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if 0 < abs(value) < 0.1 else f"{value:.2f}"


@blueprint.app_template_filter()
def size(count: int) -> str:
    """Write a number of bytes as a person would."""
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1e3:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"
