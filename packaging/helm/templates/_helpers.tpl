{{- define "countersign.fullname" -}}
{{- default (printf "%s-%s" .Release.Name (default .Chart.Name .Values.nameOverride)) .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "countersign.labels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "countersign.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "countersign.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "countersign.secret" -}}
{{- required (printf "certificates.%s.existingSecret: name a Secret with these certificates; `controlplane pki init` makes files for a first one" .name) (index .root.Values.certificates .name).existingSecret -}}
{{- end -}}

{{- define "countersign.config" -}}
{{- if .Values.apisix.fullCustomConfig.enabled -}}
{{ toYaml .Values.apisix.fullCustomConfig.config }}
{{- else -}}
deployment:
  role: traditional
  role_traditional:
    config_provider: {{ ternary "etcd" "embedded" (gt (len .Values.etcd.host) 0) }}
{{- if .Values.etcd.host }}
  etcd:
    host: {{ toJson .Values.etcd.host }}
    prefix: {{ .Values.etcd.prefix | quote }}
    tls:
      cert: /etc/countersign/etcd/etcd-client.crt
      key: /etc/countersign/etcd/etcd-client.key
{{- end }}
  admin:
    admin_key:
      - name: admin
        key: {{ ternary "${{COUNTERSIGN_ADMIN_KEY:=}}" "" (ne .Values.apisix.admin.credentials.secretName "") | quote }}
        role: admin
    allow_admin: {{ toJson .Values.apisix.admin.allow.ipList }}
    admin_listen: {ip: 0.0.0.0, port: {{ .Values.apisix.admin.port }}}
    https_admin: true
    admin_api_mtls:
      admin_ssl_cert: /etc/countersign/admin/admin-server.crt
      admin_ssl_cert_key: /etc/countersign/admin/admin-server.key
      admin_ssl_ca_cert: /etc/countersign/admin/admin-ca.crt
apisix:
  enable_admin: {{ .Values.apisix.admin.enabled }}
  node_listen: {{ if .Values.service.http.enabled }}[{{ .Values.service.http.containerPort }}]{{ else }}[{ip: 127.0.0.1, port: {{ .Values.service.http.containerPort }}}]{{ end }}
  ssl:
    enable: true
    listen: [{port: {{ .Values.apisix.ssl.containerPort }}}]
    ssl_protocols: {{ .Values.apisix.ssl.sslProtocols | quote }}
{{- if .Values.etcd.host }}
    ssl_trusted_certificate: /etc/countersign/etcd/etcd-ca.crt
{{- end }}
  status: {ip: 0.0.0.0, port: 7085}
nginx_config:
  worker_shutdown_timeout: {{ .Values.shutdown.workerShutdownTimeout }}s
countersign:
  drain_delay: {{ .Values.shutdown.drainDelay }}
  keyring_file: /etc/countersign/keyring/keyring
  push:
    listen: 0.0.0.0:9280
    cert: /etc/countersign/push/push-server.crt
    key: /etc/countersign/push/push-server.key
    ca: /etc/countersign/push/push-ca.crt
  control_plane: {status: "0.0.0.0:7086"}
  status: {allow: {{ toJson .Values.status.allow }}}
  store: {path: /var/lib/countersign/store.redb}
  node:
    # One name for all pods: that of the certificate in certificates.node. The list of data planes tells them apart by address.
    name: dataplane
    control_planes: ["{{ include "countersign.fullname" . }}-controlplane:9280"]
    server_name: controlplane
    cert: /etc/countersign/node/node.crt
    key: /etc/countersign/node/node.key
    ca: /etc/countersign/node/push-ca.crt
    last_good: /var/lib/countersign/last_good.snapshot
{{- end -}}
{{- end -}}
