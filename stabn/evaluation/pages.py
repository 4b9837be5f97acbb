"""The pages' templates: what a video or an action is called is text there, whatever it says."""

import jinja2

# Stands where maps of the spatial attention are shown.
MAP_NOTE = (
    "Colours of the spatial attention are stretched to the video’s own lowest and highest value. Red is where it is "
    "high, which need not be what the answer depends on: (1 + Ms) f serves the network as well upside down, red on "
    "the background; stabn faithfulness measures which it is."
)


def load_template(name: str, escape: bool = True) -> jinja2.Template:
    """Return a page of this folder, `report.html.jinja`; it escapes what is put in, and misses nothing silently.

    Args:
        name: of the file.
        escape: false for Markdown, into which nothing may be put that others chose.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stabn", "evaluation"),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["map_note"] = MAP_NOTE
    return environment.get_template(name)
