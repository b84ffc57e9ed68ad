"""The Lightning module and data module, metrics, callbacks and the report (extra ``train``)."""
