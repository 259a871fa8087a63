"""The charts of runs: from summaries and trials to plotly figures, each with words beside it."""
