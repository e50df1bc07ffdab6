"""Folders that processes of one machine or many share, on a file system or at a URL: one at a time works in each.

From below: a place is a path or a URL (``places``); a shelf is its files by name, of which the first one to create a
name wins (``shelf``, ``url_shelf``); a mirror keeps a local copy of what lies at a URL (``mirror``). A lease says whose
a folder is (``lease``, ``owner``) and a heartbeat that its owner is alive (``heartbeat``). ``shared_folder`` puts them
together; the store of runs is made of such folders.
"""
