"""Models side by side: what each gets right, what it costs, and where they differ (extra ``train``)."""
