"""What the tabs of the demo's page share: error messages, lists of looks, and how a job is followed."""

import os
from contextlib import contextmanager
from html import escape

from ..utils.errors import explain
from .demo_looks import CHOSEN, PLAIN
from .demo_texts import outcome, progress_text
from .studio import MISSING, Studio

FACES = 8  # pictures in the grid
BLANK = "<br><br>"  # keeps the height of a status line while Gradio draws a progress bar over it
HIDDEN = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
SHOWN = {"api_visibility": "private", "concurrency_limit": None}
STATUS = {"container": True, "padding": True, "min_height": 64}


def gradio():
    """Import Gradio with its usage reports switched off.

    Raises:
        ImportError: Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio reads it on import
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise ImportError(MISSING.format(error.name)) from error
    return gr


class Parts:
    """Events that more than one tab needs.

    Args:
        studio: does the work.
    """

    def __init__(self, studio: Studio):
        self.gr, self.studio, self.pictures = gradio(), studio, studio.pictures

    @contextmanager
    def errors_as_toasts(self):
        try:
            yield
        except (ValueError, OSError, ImportError) as error:
            raise self.gr.Error(escape(explain(error)), print_exception=False) from error

    def choices(self, key, ticked=None, own=None):
        """Return the lists of looks anew: the ticked ones, the downloads, and the look of each face.

        Args:
            key: key of the visitor.
            ticked: the looks to tick; None leaves them.
            own: the looks of the faces; None leaves them. A face whose look is gone gets the ticked ones.
        """
        gr, labels = self.gr, self.studio.labels(key)
        every = [CHOSEN, PLAIN, *labels]
        values = [{} if own is None else {"value": look if look in every else CHOSEN} for look in own or [""] * FACES]
        files = [str(file) for file in self.studio.visitor(key).files.values()]
        return [
            gr.CheckboxGroup(labels, **({} if ticked is None else {"value": ticked})),
            gr.File(files or None, visible=bool(files)),
            *(gr.Dropdown(every, **value) for value in values),
        ]

    def follow(self, kind):
        """Return an event that shows the progress of a visitor's job until it is over, then how it ended."""
        gr, studio = self.gr, self.studio

        async def follow_job(key, progress=gr.Progress()):  # noqa: B008  Gradio finds it by its default value
            ended = gr.skip()
            async for job in studio.watch(key, kind):
                if job.over:
                    ended = outcome(job)
                else:
                    progress(job.done / job.steps, desc=progress_text(job))
            return ended

        follow_job.__name__ = f"follow_{kind}"  # Gradio names the event after it
        return follow_job

    @staticmethod
    def state(job):
        """Return what `buttons` and `preview` compare."""
        return job.pictures, job.state, job.stopping

    def buttons(self, job, before, keeps=False):
        """Return the states of a start button, a button that stops and keeps if there is one, and a stop button.

        They are left as they are unless they change: an update can swallow a click.
        """
        gr = self.gr
        if before is not None and before[1:] == (job.state, job.stopping):
            return [gr.skip()] * (3 if keeps else 2)
        keep = [gr.Button(visible=job.state == "running", interactive=not job.stopping)] if keeps else []
        return [gr.Button(interactive=job.over), *keep, gr.Button(visible=not job.over, interactive=not job.stopping)]

    def preview(self, job, before):
        """Return a job's pictures and their column, unless the page shows these pictures already."""
        if before is not None and before[0] is job.pictures:
            return [self.gr.skip()] * 2
        return self.gallery(job.pictures)

    def gallery(self, captioned):
        """Return captions and pictures, and the column around them, which is hidden where there are none."""
        return [self.pictures.gallery(captioned), self.gr.Column(visible=bool(captioned))]
