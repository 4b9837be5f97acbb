"""The pages' templates: what a video or an action is called is text there, whatever it says."""

import jinja2


def load_template(name: str) -> jinja2.Template:
    """Return a page of this folder, `report.html.jinja`; it escapes what is put in, and misses nothing silently."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stabn", "evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
