"""MLflow: the only package that imports mlflow. Files are the record; this is a view of them.

Imports core to records.
"""
