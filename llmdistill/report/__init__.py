"""One self-contained HTML page per run: what each stage did, and whether the student became better.

`data` reads the run directory, `compare` words the comparison, `charts` draws,
`page` puts it all into `page.html`, which stands in `frame.html` as every page
does (`html`). Nothing read from the run directory becomes
markup, a script or an address, and the page asks no server for anything.
"""
