"""Reports for people: the model card (card.py) and the HTML page (page.py, needs the extra ``report``).

They read what the stages wrote and compute nothing anew. No stage imports them.
"""
