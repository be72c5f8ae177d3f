"""The model card and the HTML pages.

Imports core to tracking.

card, card_facts                  the card's Markdown, and the facts in it
contents, stage_states, reading   what the report page shows, as plain data
pages, report_page, templates/    self-contained HTML
drawing, lineage_drawing          charts, and the lineage graph
svg                               the elements of both; their colours: templates/page.html.j2
"""
