"""A Sphinx extension: what stands in the head of a page, and the scripts that only one page needs."""
import html


def tags(title, description):
    "Return the tags of a page for search engines and previews of links."
    named = dict(description=description)
    for_previews = {'og:title': title, 'og:description': description, 'og:type': 'article', 'og:site_name': 'llmbook'}
    lines = [f'<meta name="{name}" content="{html.escape(text)}">' for name, text in named.items() if text]
    lines += [f'<meta property="{name}" content="{html.escape(text)}">' for name, text in for_previews.items() if text]
    lines.append('<meta name="twitter:card" content="summary">')
    return '\n'.join(lines)


def add_tags(app, pagename, templatename, context, doctree):
    "Give a page its tags; the page for wrong addresses also learns where the site begins."
    described = app.config.page_descriptions.get(pagename, '')
    above = context.get('metatags', '')
    if pagename == '404': above = f'<base href="{app.config.site_root}">\n{above}'
    title = context.get('title') or app.config.project
    if pagename.startswith('contents/'): # a chapter or a module may have the name of its section
        title = f'{title}: contents'
        context['title'] = title
    context['metatags'] = f'{above}\n{tags(title, described)}'
    if pagename != 'search': return
    for script in ('names.js', 'finder.js'): app.add_js_file(script)


def setup(app):
    app.add_config_value('page_descriptions', {}, '')
    app.add_config_value('site_root', '/', '')
    app.connect('html-page-context', add_tags)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
