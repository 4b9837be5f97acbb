"""Components that check a pipeline's form: its first step, where KFP's own form has checked nothing."""

from components.component import Step, component
from components.images import DATA_IMAGE


def run_baseline(step: Step) -> None:
    """Refuse what a later stage of the pipeline could not use."""
    from components.first_look import check_all

    check_all("baseline", step.by_form)


def run_finetune(step: Step) -> None:
    """Refuse what a later stage of the pipeline could not use."""
    from components.first_look import check_all

    check_all("finetune", step.by_form)


def run_full(step: Step) -> None:
    """Refuse what a later stage of the pipeline could not use."""
    from components.first_look import check_all

    check_all("full", step.by_form)


check_baseline = component("check-baseline", run_baseline, DATA_IMAGE)
check_finetune = component("check-finetune", run_finetune, DATA_IMAGE)
check_full = component("check-full", run_full, DATA_IMAGE)
