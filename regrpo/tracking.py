def is_following(): return False
def start_following(): pass
