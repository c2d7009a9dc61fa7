"use strict";
// Tables that sort and filter, and plots from data that the page carries. A table is {id, columns: [{name, label, text}],
// rows: [[...]], filter}; what passes the filters is told to whoever listens.

const PREFIXES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"], [1e-12, "p"]];
const MOST_ROWS = 1000;
const SYMBOLS = ["circle", "square", "diamond", "triangle-up"];  // where there are more groups than colours

function shown(value, unit) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (value === 0) return "0";
  if (unit) {
    const [size, prefix] = PREFIXES.find(([size]) => Math.abs(value) >= 0.9995 * size) || PREFIXES[PREFIXES.length - 1];
    return `${Number((value / size).toPrecision(4))} ${prefix}${unit}`;
  }
  return Math.abs(value) >= 1e6 || Math.abs(value) < 1e-3 ? value.toExponential(3) : String(Number(value.toPrecision(5)));
}

// A filter is a part of the text, or a comparison such as >= 32, or a range such as 16..64.
function passes(value, filter) {
  const text = filter.trim();
  if (!text) return true;
  const range = text.match(/^(-?[0-9.eE+-]+)\s*\.\.\s*(-?[0-9.eE+-]+)$/);
  if (range) return typeof value === "number" && value >= Number(range[1]) && value <= Number(range[2]);
  const compared = text.match(/^(<=|>=|<|>|=|!=)\s*(.+)$/);
  if (compared) {
    const [, sign, wanted] = compared;
    const number = Number(wanted);
    if (typeof value === "number" && !Number.isNaN(number)) {
      return {"<": value < number, "<=": value <= number, ">": value > number, ">=": value >= number,
        "=": value === number, "!=": value !== number}[sign];
    }
    if (sign === "=") return String(value) === wanted;
    return sign === "!=" && String(value) !== wanted;
  }
  return String(value ?? "").toLowerCase().includes(text.toLowerCase());
}

function makeTable(data, listen) {
  const host = document.getElementById(data.id);
  const marked = new Set(data.marked || []);
  const filters = data.columns.map(() => "");
  let sorted = {column: -1, down: false};
  let kept = data.rows.map((_, i) => i);
  const table = document.createElement("table");
  const head = table.createTHead();
  const names = head.insertRow();
  const body = table.createTBody();
  const note = document.createElement("p");
  note.className = "note";

  function order() {
    if (sorted.column < 0) return kept;
    const c = sorted.column;
    const sign = sorted.down ? -1 : 1;
    return [...kept].sort((i, k) => {
      const a = data.rows[i][c], b = data.rows[k][c];
      if (a === null || b === null) return (a === null) - (b === null);
      const compared = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});
      return sign * compared || i - k;
    });
  }

  function draw() {
    body.replaceChildren();
    const rows = order();
    for (const i of rows.slice(0, MOST_ROWS)) {
      const line = body.insertRow();
      if (marked.has(i)) line.className = "front";
      data.columns.forEach((column, c) => {
        const cell = line.insertCell();
        cell.textContent = shown(data.rows[i][c], column.unit);
        if (column.text) cell.className = "text";
      });
    }
    const more = rows.length > MOST_ROWS ? `, the first ${MOST_ROWS} shown` : "";
    note.textContent = `${rows.length} of ${data.rows.length} rows${more}`;
    names.querySelectorAll("th").forEach((cell, c) => {
      cell.setAttribute("aria-sort", c !== sorted.column ? "none" : sorted.down ? "descending" : "ascending");
    });
  }

  data.columns.forEach((column, c) => {
    const cell = document.createElement("th");
    if (column.text) cell.className = "text";
    const button = document.createElement("button");
    button.textContent = column.label || column.name;
    button.title = `sort by ${column.name}`;
    button.onclick = () => {
      // Numbers are first wanted large, texts in order; again turns it round.
      sorted = {column: c, down: sorted.column === c ? !sorted.down : !column.text};
      draw();
    };
    cell.append(button);
    names.append(cell);
  });
  if (data.filter) {
    const line = head.insertRow();
    data.columns.forEach((column, c) => {
      const cell = document.createElement("th");
      const input = document.createElement("input");
      input.setAttribute("aria-label", `filter ${column.name}`);
      input.placeholder = column.text ? "part of text" : ">= 0";
      input.oninput = () => {
        filters[c] = input.value;
        kept = data.rows.map((_, i) => i).filter((i) => filters.every((f, k) => passes(data.rows[i][k], f)));
        draw();
        if (listen) listen(kept);
      };
      cell.append(input);
      line.append(cell);
    });
  }
  const wide = document.createElement("div");
  wide.className = "wide";
  wide.append(table);
  host.append(note, wide);
  draw();
}

function drawPlot(id, figure) {
  return Plotly.newPlot(id, figure.data, figure.layout, {responsive: true, displaylogo: false, scrollZoom: figure.scroll || false});
}

// The scatter of a sweep: axes and colour are chosen, what the table's filters leave is drawn, the front ringed.
function makeScatter(data) {
  const numbers = data.columns.filter((column) => !column.text).map((column) => column.name);
  const at = Object.fromEntries(data.columns.map((column, i) => [column.name, i]));
  const front = new Set(data.marked);
  const chosen = {};
  const logarithmic = {};
  let kept = data.rows.map((_, i) => i);

  function column(name, rows) {
    return rows.map((i) => data.rows[i][at[name]]);
  }

  // Points that differ in the chosen text stand in groups of their own; without one, those that did not come out well do.
  function groups(colour) {
    const found = new Map();
    const by = colour && data.columns[at[colour]].text ? colour : "status";
    for (const i of kept) {
      const value = data.rows[i][at[by]];
      const name = by === "status" && value === "ok" && !colour ? "points" : String(value);
      if (!found.has(name)) found.set(name, []);
      found.get(name).push(i);
    }
    return found;
  }

  function trace(name, rows, marker) {
    const shownKeys = data.columns.slice(0, data.keys + 1);
    const text = rows.map((i) => shownKeys.map((key, k) => `${key.name}: ${shown(data.rows[i][k], key.unit)}`).join("<br>"));
    return {type: "scatter", mode: "markers", name, x: column(chosen.x.value, rows), y: column(chosen.y.value, rows), text,
      hovertemplate: "%{text}<br>%{xaxis.title.text}: %{x}<br>%{yaxis.title.text}: %{y}<extra></extra>", marker};
  }

  function axis(which) {
    const name = chosen[which].value;
    const unit = data.columns[at[name]].unit;
    return {title: {text: unit ? `${name} (${unit})` : name}, type: logarithmic[which].checked ? "log" : "linear",
      gridcolor: "#e4e4e4", tickformat: "~s", dtick: logarithmic[which].checked ? "D2" : undefined};
  }

  function draw() {
    const colour = chosen.colour.value;
    const size = kept.length > 2000 ? 4 : 7;
    let traces;
    if (colour && !data.columns[at[colour]].text) {
      const scale = {color: column(colour, kept), colorscale: "Cividis", showscale: true, colorbar: {title: {text: colour}}, size};
      traces = [trace("points", kept, scale)];
    } else {
      traces = [...groups(colour)].map(([name, rows], k) => {
        const plain = !colour && name !== "points";
        const turn = Math.floor(k / data.palette.length) % SYMBOLS.length;
        return trace(name, rows, {color: plain ? "#9a9a9a" : data.palette[k % data.palette.length], symbol: SYMBOLS[turn], size});
      });
    }
    const best = kept.filter((i) => front.has(i));
    if (best.length) {
      traces.push(trace("front", best, {symbol: "circle-open", color: "#D55E00", size: size + 5, line: {width: 2}}));
    }
    Plotly.react("scatter", traces, {height: 480, margin: {l: 70, r: 20, t: 34, b: 50}, xaxis: axis("x"), yaxis: axis("y"),
      plot_bgcolor: "#fff", hovermode: "closest", showlegend: traces.length > 1, legend: {orientation: "h", y: 1.08}},
    {responsive: true, displaylogo: false});
  }

  // A logarithmic axis is proposed where the values reach far.
  function propose(which) {
    let low = Infinity, high = -Infinity;
    for (const row of data.rows) {
      const value = row[at[chosen[which].value]];
      if (row[at.status] === "ok" && value !== null) {
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
    logarithmic[which].checked = low > 0 && high / low > 30;
  }

  for (const [name, options, wanted] of [["x", numbers, data.x], ["y", numbers, data.y], ["colour", ["", ...data.columns.map((k) => k.name)], ""]]) {
    const select = document.getElementById(`choose-${name}`);
    for (const option of options) select.add(new Option(option || "none", option, false, option === wanted));
    chosen[name] = select;
  }
  chosen.colour.onchange = draw;
  for (const which of ["x", "y"]) {
    logarithmic[which] = document.getElementById(`log-${which}`);
    logarithmic[which].onchange = draw;
    chosen[which].onchange = () => { propose(which); draw(); };
    propose(which);
  }
  draw();
  return (rows) => { kept = rows; draw(); };
}
