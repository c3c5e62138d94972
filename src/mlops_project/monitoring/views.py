"""The four views of what is watched, as data: Grafana's dashboard and `mlops-monitor report` are made of them."""

from __future__ import annotations

from typing import NamedTuple

LATENCY = 'mlops_http_request_seconds_bucket{route="/v1/predict"}'
SIDES = ("window", "reference")


class Panel(NamedTuple):
    """A panel: its queries with the legend of each, unit and kind as Grafana names them."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    text: str = ""


VIEWS: dict[str, tuple[Panel, ...]] = {
    "Service": (
        Panel("Targets that answer", (('sum(up{job="credit-risk"})', "up"),), kind="stat"),
        Panel("Workers", (("sum(mlops_workers)", "workers"),), kind="stat"),
        Panel("Alerts that fire", (('count(ALERTS{alertstate="firing"}) or vector(0)', "alerts"),), kind="stat"),
        Panel("Requests by status", (("sum by (status) (mlops:requests:rate5m)", "{{status}}"),), "reqps"),
        Panel(
            "Latency of predictions",
            tuple(
                (
                    f'histogram_quantile({q}, sum by (le) (rate(mlops_http_request_seconds_bucket{{route="/v1/predict"}}[5m])))',
                    f"p{100 * q:g}",
                )
                for q in (0.5, 0.95, 0.99)
            ),
            "s",
        ),
        Panel(
            "Share failed and slow",
            (("mlops:errors:ratio5m", "failed (5xx)"), ("mlops:slow:ratio5m", "slower than 0.25 s")),
            "percentunit",
            text="Objectives: 0.5 % and 1 %",
        ),
        Panel("Over their limit", (('sum(mlops:requests:rate5m{status="429"})', "429"),), "reqps"),
        Panel(
            "Prediction log",
            (
                ("histogram_quantile(0.99, sum by (le) (rate(mlops_log_commit_seconds_bucket[5m])))", "p99 until commit"),
                ("max(mlops_log_oldest_waiting_seconds)", "oldest that waits"),
            ),
            "s",
        ),
        Panel(
            "Records that wait or failed",
            (("sum(mlops_log_waiting_records)", "waiting"), ("sum(rate(mlops_log_failures_total[5m]))", "failed per second")),
        ),
        Panel("Workers started anew", (("sum(mlops_worker_restarts_total)", "restarts"),), kind="stat"),
        Panel("Log can be written", (("min(mlops_log_usable)", "1: yes"),), kind="stat"),
        Panel("Models refused", (('sum(mlops_model_loads_total{outcome="refused"})', "refused"),), kind="stat"),
    ),
    "Predictions": (
        Panel("Applicants by decision", (("mlops:predictions:rate5m", "{{decision}}"),)),
        Panel("Share refused", (("mlops:refused:ratio1h", "refused"),), "percentunit"),
        Panel(
            "Mean probability of default",
            (
                (
                    "sum(rate(mlops_probability_of_default_sum[1h])) / sum(rate(mlops_probability_of_default_count[1h]))",
                    "mean",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Distribution of the probability of default, last hour",
            (("sum by (le) (increase(mlops_probability_of_default_bucket[1h]))", "{{le}}"),),
            kind="bargauge",
            text="Applicants up to each probability",
        ),
        Panel(
            "Values treated as missing, share",
            (('mlops:cells_missing:ratio1h{reason="treated"}', "{{feature}}"),),
            "percentunit",
        ),
        Panel("Values absent, share", (('mlops:cells_missing:ratio1h{reason="absent"}', "{{feature}}"),), "percentunit"),
        Panel("Model", (("max by (name, model_version) (mlops_model_info)", "{{name}} {{model_version}}"),), kind="stat"),
        Panel("Age of the model", (("mlops:model:age_seconds", "since it first answered"),), "s", "stat"),
    ),
    "Drift": (
        Panel("Drift", (("max(mlops_drift_detected)", "1: found"),), kind="stat"),
        Panel("Last run", (('time() - max(mlops_report_timestamp_seconds{report="drift"})', "ago"),), "s", "stat"),
        Panel("Rows compared", (("max by (side) (mlops_drift_rows)", "{{side}}"),), kind="stat"),
        Panel(
            "Population stability index",
            (('max by (feature) (mlops_drift_statistic{check=~"psi|score_psi"})', "{{feature}}"),),
            text="Without a name: of the score",
        ),
        Panel(
            "Distance to the threshold",
            (("max by (feature, check) (mlops_drift_statistic / mlops_drift_threshold)", "{{feature}} {{check}}"),),
            text="From 1 on a test alarms",
        ),
        Panel(
            "Classifier: ROC-AUC",
            (("max by (bound) (mlops_drift_classifier)", "{{bound}}"),),
            text="0.5: it cannot tell window from training rows",
        ),
        Panel(
            "Missing or out of contract, window minus training rows",
            (
                (
                    " - ".join(f'max by (feature, kind) (mlops_drift_cell_share{{side="{side}"}})' for side in SIDES),
                    "{{feature}} {{kind}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Score, share per bin",
            (("max by (bin, side) (mlops_drift_score_share)", "{{bin}} {{side}}"),),
            "percentunit",
            "bargauge",
        ),
    ),
    "Quality": (
        Panel("Worse than the reference", (("max by (metric) (mlops_quality_worse)", "{{metric}}"),), kind="stat"),
        Panel("Last run", (('time() - max(mlops_report_timestamp_seconds{report="quality"})', "ago"),), "s", "stat"),
        Panel("Predictions in the window", (("max by (which) (mlops_quality_rows)", "{{which}}"),), kind="stat"),
        *(
            Panel(
                f"{title}, approved applicants",
                tuple(
                    (f'max(mlops_quality_{key}{{metric="{name}"}})', legend)
                    for key, legend in (("value", "now"), ("low", "low"), ("high", "high"), ("reference", "reference"))
                ),
                unit,
            )
            for name, title, unit in (
                ("roc_auc", "ROC-AUC", "short"),
                ("brier", "Brier score", "short"),
                ("default_rate", "Default rate", "percentunit"),
            )
        ),
        Panel(
            "Cells of the last incoming file, share",
            (("max by (feature, kind) (mlops_data_share)", "{{feature}} {{kind}}"),),
            "percentunit",
        ),
        Panel(
            "The same above the raw table",
            (("max by (feature, kind) (mlops_data_share - mlops_data_reference)", "{{feature}} {{kind}}"),),
            "percentunit",
        ),
        Panel(
            "Its rows and bad cells", (("max(mlops_data_rows)", "rows"), ("max(mlops_data_bad_cells)", "bad cells")), kind="stat"
        ),
    ),
}
