"""Modules joined into one script: what they do there is what they do as modules, and nothing else passes."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from saelab.types import ConfigError
from saelab.widgets import assets
from saelab.widgets.joining import MODULES, joined

SHARED = """\
export const ROW = 7;
export function text() {
  return `row ${ROW}`;
}
export const LIST = [1, 2,
  3];
"""
VIEW = r"""/* import { x } from "./nope.js" */
// export default 3;
import {
  // the row of the other
  ROW as ROWS,
  text, // trailing
} from "./shared.js";
const first = LIST.length;
import { LIST } from './shared.js'
const ROW = 5;
const template = `import { q } from "./nope.js";
export const zz = ${ { a: `in ${ROW} }`, b: /[`"'/]\/}/.test("}") }.a } \` ${"`"}`;
const string = "export default 1; \" import x from 'y'", ratio = 40 / 2 / 1;
export const sum = (x, y) => ({ import: 1, x, y }).import + ROW + ROWS + first;
export async function later() { return await text(); }
export function* count() { yield "a/b".replace(/\//g, "-"); yield ratio; }
export class Named { get name() { return [template, string]; } }
const o = { export: 2 };
o.export = 3; o.import = 4;
let i = 1; i++ / 2;
"""
ASK = """
const seen = { sum: m.sum(1, 2), later: await m.later(), count: [...m.count()], named: new m.Named().name };
console.log(JSON.stringify({ seen, keys: Object.keys(m).sort() }));
"""


def run(folder, name, source):
    if shutil.which("node") is None:
        pytest.skip("needs node")
    (folder / name).write_text(source)
    done = subprocess.run(["node", folder / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_joined_modules_do_what_they_do_apart(tmp_path):
    (tmp_path / "shared.js").write_text(SHARED)
    (tmp_path / "view.js").write_text(VIEW)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    apart = run(tmp_path, "main.mjs", f'import * as m from "./view.js";\n{ASK}')
    script = joined({"v/view.js": VIEW}, {"v/shared.js": SHARED}.get)
    together = run(tmp_path, "joined.mjs", f'{script}\nconst m = {MODULES}["v/view.js"];\n{ASK}')
    assert together == apart
    assert apart["keys"] == ["Named", "count", "later", "sum"]
    assert apart["seen"]["sum"] == 1 + 5 + 7 + 3


def test_each_module_is_there_once_and_before_those_that_import_it():
    sources = {
        "s/a.js": 'import { b } from "./b.js";\nexport const a = b;',
        "s/b.js": "export const b = 1;",
        "v/one.js": 'import { a } from "../s/a.js";\nimport { b } from "../s/b.js";\nexport const c = a + b;',
        "v/two.js": 'import { c } from "./one.js";\nexport const d = c;',
    }
    script = joined({n: sources[n] for n in ("v/two.js", "v/one.js")}, sources.get)
    places = [script.index(f'{MODULES}["{n}"] =') for n in ("s/b.js", "s/a.js", "v/one.js", "v/two.js")]
    assert places == sorted(places)
    assert all(script.count(f'{MODULES}["{n}"] =') == 1 for n in sources)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("export default 1;", "must be of a declaration. Got 'export default 1;' in v/a.js, line 2"),
        ("export * from './b.js';", "must be of a declaration"),
        ("export { a };", "must be of a declaration"),
        ("export let a = 1;", "must be of a declaration"),
        ("export", "must be of a declaration"),
        ("export const a = 1, b = 2;", "must be one name"),
        ("export const { a } = {};", "must have a name"),
        ("export default class {}", "must be of a declaration"),
        ("export class {}", "must have a name"),
        ("import x from './b.js';", "must be by name"),
        ("import * as x from './b.js';", "must be by name"),
        ("import x, { ROW } from './b.js';", "must be by name"),
        ("import './b.js';", "must be by name"),
        ("import { ROW } from './b.js' with { type: 'json' };", "no attributes"),
        ("import { x } from 'package';", "relative path"),
        ("import { x } from 'https://example.org/x.js';", "relative path"),
        ("import { x } from './c.js';", "at hand. Got 'v/c.js' in v/a.js"),
        ("import { x } from '../../b.js';", "at hand"),
        ("import { x } from './b.js';", "Got 'x' in v/a.js. Import what v/b.js exports: ROW"),
        ("import { default as x } from './b.js';", "exported by its module"),
        ("import { x } from './a.js';", "circle. Got v/a.js imports v/a.js"),
        ("import { x } from './round.js';", "v/a.js imports v/round.js imports v/a.js"),
        ("const b = () => import('./b.js');", "at the top"),
        ("const url = import.meta.url;", "at the top"),
        ("await 3;", "inside a function"),
        ("const __modules = {};", "another name"),
        ("const a = 'abc\n';", "A string must end. Got .* in v/a.js, line 2"),
        ("const a = `abc", "A template must end"),
        ("const a = /abc\n/;", "regular expression must end"),
        ("/* abc", "A comment"),
        ("f(\n\n", "Brackets must match. Got 'f\\(' in v/a.js, line 2"),
        ("f(]", "Brackets must match"),
    ],
)
def test_what_cannot_be_joined_is_refused_by_name(source, told):
    at_hand = {"v/b.js": SHARED, "v/round.js": 'import { x } from "./a.js";\nexport const x = 1;'}
    with pytest.raises(ConfigError, match=told):
        joined({"v/a.js": f"// the first line\n{source}"}, at_hand.get)


def test_what_saelab_ships_is_joined(tmp_path):
    kinds = sorted(path.stem for path in (assets.root() / "views").glob("*.js"))
    assert kinds == ["card", "features", "tokens"]
    scripts = {kind: assets.module(kind) for kind in kinds}
    scripts["page"] = assets.page_script(dict.fromkeys(kinds))
    for kind, script in scripts.items():
        (tmp_path / f"{kind}.mjs").write_text(script)
        assert script.count("\nexport ") == (kind != "page")
        if shutil.which("node") is not None:
            subprocess.run(["node", "--check", tmp_path / f"{kind}.mjs"], check=True)
    for kind in kinds:
        assert scripts[kind].count(f'{MODULES}["views/') == 2  # made and given to anywidget: no other view
    if shutil.which("node") is None:
        pytest.skip("needs node")


@pytest.mark.parametrize("kind", ["nothing", "../shared/dom", "Card", ""])
def test_a_kind_without_a_module_is_refused(kind):
    with pytest.raises(ConfigError, match="kind must name"):
        assets.module(kind)
