"""What the boards are made of: panels that look alike, over one Prometheus, each with a unit and a description."""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="tidecast-prometheus")  # provisioning/datasources
OURS = 'job=~"$job", instance=~"$instance"'
HEIGHT, STAT_HEIGHT = 8, 4
GREEN, YELLOW, RED = "green", "#EAB839", "red"

Queries = dict[str, str]  # legend -> expression; in a legend {{label}} is the label's value
Steps = list[tuple[float | None, str]]  # from this value on this colour; None = from the lowest on


def _targets(panel: Any, queries: Queries, *, instant: bool = False) -> Any:
    for letter, (legend, expr) in zip("ABCDEFGH", queries.items(), strict=False):
        query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(letter).datasource(DATASOURCE)
        panel.with_target(query.instant() if instant else query.range())
    return panel


def _dress(panel: Any, title: str, description: str, unit: str, span: int, height: int, steps: Steps | None) -> Any:
    panel.title(title).description(description).unit(unit).datasource(DATASOURCE).span(span).height(height)
    if steps is not None:
        found = [model.Threshold(value=value, color=color) for value, color in steps]
        panel.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(found))
    return panel


def lines(
    title: str,
    description: str,
    unit: str,
    queries: Queries,
    *,
    span: int = 8,
    steps: Steps | None = None,
    stacked: bool = False,
    log: bool = False,
    low: float | None = 0,
) -> Any:
    """Curves over time. `steps` are drawn as lines, to see where it becomes bad."""
    panel = _targets(timeseries.Panel(), queries)
    _dress(panel, title, description, unit, span, HEIGHT, steps)
    panel.fill_opacity(40 if stacked else 8).line_width(1).show_points(looks.VisibilityMode.NEVER)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(looks.LegendDisplayMode.TABLE)
        .placement(looks.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
    )
    panel.tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING))
    if steps is not None:
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(looks.GraphTresholdsStyleMode.DASHED))
    if stacked:
        panel.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL))
    if log:
        panel.scale_distribution(common.ScaleDistributionConfig().type(looks.ScaleDistribution.LOG).log(10))
    elif low is not None:
        panel.min(low)
    return panel


def number(title: str, description: str, unit: str, queries: Queries, steps: Steps, *, span: int = 4) -> Any:
    """The latest value, large, in the colour of its step."""
    panel = _dress(_targets(stat.Panel(), queries), title, description, unit, span, STAT_HEIGHT, steps)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.color_mode(looks.BigValueColorMode.VALUE).graph_mode(looks.BigValueGraphMode.AREA)


def bars(
    title: str, description: str, unit: str, queries: Queries, steps: Steps, *, low: float, high: float, span: int = 8
) -> Any:
    """One bar for each of a few things, as they are now."""
    panel = _targets(bargauge.Panel(), queries, instant=True)
    _dress(panel, title, description, unit, span, HEIGHT, steps).min(low).max(high)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.orientation(looks.VizOrientation.HORIZONTAL).display_mode(looks.BarGaugeDisplayMode.BASIC)


def rows(title: str, description: str, expr: str, hidden: list[str], *, span: int = 8) -> Any:
    """Labels as a table, as they are now."""
    query = prometheus.Dataquery().expr(expr).instant().format(PromQueryFormat.TABLE).ref_id("A").datasource(DATASOURCE)
    panel = _dress(table.Panel().with_target(query), title, description, "short", span, HEIGHT, None)
    away = {"excludeByName": dict.fromkeys(["Time", "Value", *hidden], True)}
    return panel.with_transformation(model.DataTransformerConfig(id_val="organize", options=away))


def variable(name: str, label: str, query: str) -> Any:
    """A choice of label values; all of them to begin with."""
    chosen = dashboard.QueryVariable(name).label(label).datasource(DATASOURCE).query(query)
    chosen.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(
        model.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC
    )
    every = model.VariableOption(selected=True, text=["All"], value=["$__all"])
    return chosen.multi(True).include_all(True).all_value(".*").current(every)


def choice(name: str, label: str, values: list[str], first: str) -> Any:
    """A choice among fixed values, one at a time."""
    options = [model.VariableOption(selected=value == first, text=value, value=value) for value in values]
    chosen = dashboard.CustomVariable(name).label(label).values(",".join(values)).options(options)
    return chosen.current(model.VariableOption(selected=True, text=first, value=first))


def board(uid: str, title: str, description: str, other: str, since: str) -> dashboard.Dashboard:
    """An empty board with its variables and the way to the other one."""
    link = dashboard.DashboardLink(other).type(model.DashboardLinkType.DASHBOARDS).tags(["tidecast"])
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["tidecast"])
        .link(link.include_vars(True).keep_time(True))
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .timezone("browser")
        .time(since, "now")
        .refresh("10s")
        .with_variable(variable("job", "Job", "label_values(tidecast_build_info, job)"))
        .with_variable(variable("instance", "Worker", 'label_values(tidecast_build_info{job=~"$job"}, instance)'))
    )


def quantiles(metric: str, by: str = "", shares: tuple[float, ...] = (0.5, 0.95, 0.99)) -> Queries:
    """Quantiles of a histogram over time; `by`: for each value of this label."""
    labels = f"{by}, le" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    return {
        f"{legend}p{share * 100:g}": f"histogram_quantile({share:g}, "
        f"sum by ({labels}) (rate({metric}_bucket{{{OURS}}}[$__rate_interval])))"
        for share in shares
    }


def per_second(metric: str, by: str = "", window: str = "$__rate_interval") -> str:
    """How often a second, in all or by these labels; `metric` without its prefix."""
    return f"sum{f' by ({by}) ' if by else ''}(rate(tidecast_{metric}{{{OURS}}}[{window}]))"


def section(made: dashboard.Dashboard, title: str, *panels: Any) -> None:
    """A row of the board, and the panels below it."""
    made.with_row(dashboard.Row(title))
    for panel in panels:
        made.with_panel(panel)
