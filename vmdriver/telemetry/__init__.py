"""What the driver tells those who watch over hosts: metrics for Prometheus, metrics and traces for
OpenTelemetry's collectors. The core counts and times through OpenTelemetry's API (lifecycle/engine/
measures.py); without this room that goes nowhere.
"""
