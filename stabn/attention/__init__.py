"""Export, correction and rendering of attention."""
