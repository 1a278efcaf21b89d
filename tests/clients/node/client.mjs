// The official client for Node as published: CRUD, watch, informer, every patch, errors, custom objects, apply of any object, logs and exec.
// Usage: node client.mjs KUBECONFIG NAMESPACE [containers]. Prints one JSON line of what it saw; throws where something differs.
import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import * as k8s from '@kubernetes/client-node';

const [file, namespace, containers] = process.argv.slice(2);
const kc = new k8s.KubeConfig();
kc.loadFromFile(file);
const core = kc.makeApiClient(k8s.CoreV1Api);
const apps = kc.makeApiClient(k8s.AppsV1Api);
const custom = kc.makeApiClient(k8s.CustomObjectsApi);
const anything = k8s.KubernetesObjectApi.makeApiClient(kc);
const until = async (ask, what) => {
  for (const end = Date.now() + 60_000; Date.now() < end; await new Promise((r) => setTimeout(r, 50))) {
    const found = await ask();
    if (Array.isArray(found) ? found.length : found) return found;
  }
  throw new Error(`${what}: not within 60 s`);
};
const configMap = (name, data, labels = {}) => ({ apiVersion: 'v1', kind: 'ConfigMap', metadata: { name, namespace, labels }, data });
const patch = (type) => k8s.setHeaderOptions('Content-Type', type);

await core.createNamespace({ body: { metadata: { name: namespace } } });

// an informer sees what is there and what happens, by selector
const seen = [];
const list = () => core.listNamespacedConfigMap({ namespace, labelSelector: 'seen=yes' });
await core.createNamespacedConfigMap({ namespace, body: configMap('before', { a: '1' }, { seen: 'yes' }) });
const informer = k8s.makeInformer(kc, `/api/v1/namespaces/${namespace}/configmaps`, list, 'seen=yes');
for (const verb of ['add', 'update', 'delete']) informer.on(verb, (o) => seen.push(`${verb} ${o.metadata.name} ${o.data?.a}`));
informer.on('error', (e) => seen.push(`error ${e}`));
await informer.start();
await until(() => seen.includes('add before 1'), 'the informer');

// create, read, list in chunks, replace, conflict
const made = await core.createNamespacedConfigMap({ namespace, body: configMap('one', { a: '1' }, { seen: 'yes' }) });
assert.equal(made.metadata.name, 'one');
assert.ok(made.metadata.creationTimestamp instanceof Date);
const first = await core.listNamespacedConfigMap({ namespace, limit: 1 });
assert.equal(first.items.length, 1);
assert.ok((await core.listNamespacedConfigMap({ namespace, limit: 500, _continue: first.metadata._continue })).items.length >= 2);
const replaced = await core.replaceNamespacedConfigMap({ name: 'one', namespace, body: { ...made, data: { a: '2' } } });
assert.notEqual(replaced.metadata.resourceVersion, made.metadata.resourceVersion);

// errors carry the Status
const refusal = async (call) => {
  try {
    await call();
  } catch (e) {
    assert.ok(e instanceof k8s.ApiException, String(e));
    return [e.code, JSON.parse(e.body)];
  }
  throw new Error('not refused');
};
let [code, status] = await refusal(() => core.replaceNamespacedConfigMap({ name: 'one', namespace, body: made }));
assert.deepEqual([code, status.kind, status.reason], [409, 'Status', 'Conflict']);
[code, status] = await refusal(() => core.readNamespacedConfigMap({ name: 'none', namespace }));
assert.deepEqual([code, status.reason, status.message], [404, 'NotFound', 'configmaps "none" not found']);
[code, status] = await refusal(() => core.createNamespacedConfigMap({ namespace, body: configMap('No Name', {}) }));
assert.deepEqual([code, status.reason, status.details.causes[0].field], [422, 'Invalid', 'metadata.name']);

// the four patches
let got = await core.patchNamespacedConfigMap({ name: 'one', namespace, body: [{ op: 'add', path: '/data/b', value: '3' }] }, patch(k8s.PatchStrategy.JsonPatch));
assert.deepEqual(got.data, { a: '2', b: '3' });
got = await core.patchNamespacedConfigMap({ name: 'one', namespace, body: { data: { b: null } } }, patch(k8s.PatchStrategy.MergePatch));
got = await core.patchNamespacedConfigMap({ name: 'one', namespace, body: { metadata: { labels: { x: 'y' } } } }, patch(k8s.PatchStrategy.StrategicMergePatch));
assert.deepEqual([got.data, got.metadata.labels], [{ a: '2' }, { seen: 'yes', x: 'y' }]);
got = await core.patchNamespacedConfigMap(
  { name: 'applied', namespace, body: configMap('applied', { a: '1' }), fieldManager: 'node', force: true },
  patch(k8s.PatchStrategy.ServerSideApply),
);
assert.equal(got.metadata.managedFields[0].operation, 'Apply');

// a watch from a revision: transitions of the selector
const events = [];
const watch = new k8s.Watch(kc);
const from = { resourceVersion: replaced.metadata.resourceVersion, labelSelector: 'seen=yes', allowWatchBookmarks: true };
const watching = await watch.watch(`/api/v1/namespaces/${namespace}/configmaps`, from, (type, o) => events.push(`${type} ${o.metadata.name}`), () => {});
await core.patchNamespacedConfigMap({ name: 'one', namespace, body: { metadata: { labels: { seen: null } } } }, patch(k8s.PatchStrategy.MergePatch));
await until(() => events.includes('DELETED one'), `watch: ${events}`);
watching.abort();
assert.equal(events.filter((e) => e.startsWith('MODIFIED one')).length, 3);
await until(() => seen.includes('delete one 2'), `informer: ${seen}`);
const told = [...new Set(seen)].sort();      // stopping ends its watch with an error of its own
await informer.stop();

// a deployment that gets ready
await apps.createNamespacedDeployment({
  namespace,
  body: {
    metadata: { name: 'web' },
    spec: { replicas: 1, selector: { matchLabels: { app: 'web' } }, template: { metadata: { labels: { app: 'web' } }, spec: {
      terminationGracePeriodSeconds: 1,
      containers: [{ name: 'c', image: 'busybox', command: containers ? ['sh', '-c', 'echo hello; sleep 3600'] : ['x'] }] } } },
  },
});
await until(async () => (await apps.readNamespacedDeployment({ name: 'web', namespace })).status.availableReplicas === 1, 'the deployment');
await apps.patchNamespacedDeploymentScale({ name: 'web', namespace, body: { spec: { replicas: 0 } } }, patch(k8s.PatchStrategy.MergePatch));
assert.equal((await apps.readNamespacedDeploymentScale({ name: 'web', namespace })).spec.replicas ?? 0, 0); // upstream leaves a zero out
await apps.patchNamespacedDeploymentScale({ name: 'web', namespace, body: { spec: { replicas: 1 } } }, patch(k8s.PatchStrategy.MergePatch));

// a definition, and objects of it
const group = `${namespace}.example.com`;
await kc.makeApiClient(k8s.ApiextensionsV1Api).createCustomResourceDefinition({ body: {
  metadata: { name: `toys.${group}` },
  spec: { group, scope: 'Namespaced', names: { plural: 'toys', kind: 'Toy' }, versions: [{ name: 'v1', served: true, storage: true, subresources: { status: {} },
    schema: { openAPIV3Schema: { type: 'object', properties: { spec: { type: 'object', properties: { size: { type: 'integer', _default: 1 } } },
      status: { type: 'object', x_kubernetes_preserve_unknown_fields: true } } } } }] } } });
await until(async () => {
  try {
    return await custom.listNamespacedCustomObject({ group, version: 'v1', namespace, plural: 'toys' });
  } catch {
    return null;
  }
}, 'the definition');
const toy = { group, version: 'v1', namespace, plural: 'toys' };
await custom.createNamespacedCustomObject({ ...toy, body: { apiVersion: `${group}/v1`, kind: 'Toy', metadata: { name: 'bear' }, spec: {} } });
await custom.patchNamespacedCustomObject({ ...toy, name: 'bear', body: { spec: { size: 2 } } }, patch(k8s.PatchStrategy.MergePatch));
await custom.patchNamespacedCustomObjectStatus({ ...toy, name: 'bear', body: { status: { well: true } } }, patch(k8s.PatchStrategy.MergePatch));
const bear = await custom.getNamespacedCustomObject({ ...toy, name: 'bear' });
assert.deepEqual([bear.spec, bear.status], [{ size: 2 }, { well: true }]);

// objects of whatever kind, by discovery
await anything.create(configMap('any', { a: '1' }));
await anything.patch({ ...configMap('any', { a: '2' }) }, undefined, undefined, undefined, undefined, k8s.PatchStrategy.MergePatch);
assert.equal((await anything.read({ apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'any', namespace } })).data.a, '2');
await anything.delete({ apiVersion: `${group}/v1`, kind: 'Toy', metadata: { name: 'bear', namespace } });

// exec, logs, port-forward need containers
let said = '';
if (containers) {
  const name = (await until(async () => (await core.listNamespacedPod({ namespace, labelSelector: 'app=web' })).items
    .filter((p) => !p.metadata.deletionTimestamp && p.status.phase === 'Running'), 'a pod'))[0].metadata.name;
  const sink = () => {
    const s = new PassThrough();
    s.text = '';
    s.on('data', (d) => (s.text += d));
    return s;
  };
  const out = sink();
  const ended = await new Promise((resolve, reject) => {
    new k8s.Exec(kc).exec(namespace, name, 'c', ['sh', '-c', 'cat; exit 3'], out, sink(), (() => {
      const s = new PassThrough();
      s.end('typed');
      return s;
    })(), false, resolve).catch(reject);
  }).catch((e) => ({ error: String(e) }));
  const log = sink();
  await new k8s.Log(kc).log(namespace, name, 'c', log, { tailLines: 1 });
  await until(() => log.text, 'logs');
  said = `${out.text}|${ended.status}|${log.text.trim()}`;
}
await core.deleteNamespace({ name: namespace });
console.log(JSON.stringify({ seen: told, said }));
